//! TLS with a certificate of a test's own. On Linux, commands trust it if `SSL_CERT_FILE` names it.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// A certificate for 127.0.0.1 that the system trusts if `SSL_CERT_FILE` names it, and its key.
pub fn certificate(folder: &Path) -> [PathBuf; 2] {
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.join(name));
    let done = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=mail.test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args([
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            "extendedKeyUsage=serverAuth",
        ])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl is installed");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    [certificate, key]
}

/// The URL of a proxy that takes TLS and passes what is inside on to `target`, one request per connection.
pub fn proxy([certificate, key]: &[PathBuf; 2], target: &str) -> String {
    let certificates = CertificateDer::pem_file_iter(certificate).unwrap();
    let certificates = certificates.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key);
    let config = Arc::new(config.unwrap());
    let target = target.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let serve = move |stream: TcpStream| -> io::Result<()> {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = StreamOwned::new(connection, stream);
        let mut request = Vec::new();
        while !is_complete(&request) {
            let mut part = [0; 4096];
            match tls.read(&mut part)? {
                0 => return Ok(()),
                size => request.extend_from_slice(&part[..size]),
            }
        }
        let request = String::from_utf8(request).unwrap();
        let request = request.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        let mut plain = TcpStream::connect(&target)?;
        plain.write_all(request.as_bytes())?;
        io::copy(&mut plain, &mut tls)?;
        tls.conn.send_close_notify();
        tls.flush()
    };
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            // A client that gives up is its own affair.
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    url
}

/// Whether these bytes are a whole request.
fn is_complete(request: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(start) = head.parse(request).unwrap() else {
        return false;
    };
    let length = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |header| {
            std::str::from_utf8(header.value).unwrap().parse().unwrap()
        });
    request.len() >= start + length
}
