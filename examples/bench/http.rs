//! The smallest HTTP/1.1 client that can measure a server: it shares the machine with the server, so what it costs is missing
//! from the server's figures. Requests are built before the clock starts.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::Result;

/// The bytes of a request.
pub type Request = Vec<u8>;

/// A request with these headers. A `GET` has no body.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request {
    let headers: String = headers
        .iter()
        .flat_map(|(name, value)| [name, ": ", value, "\r\n"])
        .collect();
    let content = if body.is_empty() {
        String::new()
    } else {
        let length = body.len();
        format!("content-type: application/json\r\ncontent-length: {length}\r\n")
    };
    format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}{content}\r\n{body}")
        .into_bytes()
}

/// A connection that stays open.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

pub struct Response<'a> {
    pub status: u16,
    pub body: &'a [u8],
}

impl Response<'_> {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Where a response's body begins and ends.
struct Head {
    status: u16,
    length: usize,
    body_length: usize,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(16 * 1024),
        })
    }

    /// Sends a request and reads its response.
    pub async fn call(&mut self, request: &[u8]) -> Result<Response<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            self.read().await?;
            if let Some(head) = head(&self.buffer)? {
                break head;
            }
        };
        let end = head.length + head.body_length;
        while self.buffer.len() < end {
            self.read().await?;
        }
        Ok(Response {
            status: head.status,
            body: &self.buffer[head.length..end],
        })
    }

    async fn read(&mut self) -> Result {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err("the server closed a connection in the middle of a call".into()),
            _ => Ok(()),
        }
    }
}

/// The head of a response, once all of it has arrived.
fn head(buffer: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(buffer)? else {
        return Ok(None);
    };
    let status = response.code.unwrap_or_default();
    let named = |name: &str| {
        let mut headers = response.headers.iter();
        headers.find(|header| header.name.eq_ignore_ascii_case(name))
    };
    let body_length = match named("content-length") {
        Some(header) => std::str::from_utf8(header.value)?.parse()?,
        None if status == 204 => 0,
        None => return Err(format!("a response with status {status} has no length").into()),
    };
    Ok(Some(Head {
        status,
        length,
        body_length,
    }))
}
