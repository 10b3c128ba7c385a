//! `openapi.yaml` is in step with the code, and `/docs` shows it without the internet.

use crate::support::{TestApp, program};

#[test]
fn the_committed_document_is_that_of_the_code() {
    let made = program().arg("openapi").output().unwrap();
    assert!(made.status.success());
    let committed = include_str!("../../openapi.yaml");
    assert!(
        String::from_utf8(made.stdout).unwrap() == committed,
        "openapi.yaml is behind the code: cargo run -- openapi > openapi.yaml"
    );
}

#[tokio::test]
async fn the_document_and_its_page_are_served() {
    let app = TestApp::start().await;
    let document = app.get("/openapi.yaml").await.expect(200);
    assert_eq!(document.text, include_str!("../../openapi.yaml"));

    let page = app.get("/docs/").await.expect(200);
    assert!(page.header("content-type").starts_with("text/html"));
    let mut assets = 0;
    for attribute in page
        .text
        .split(['"', '\''])
        .filter(|text| [".js", ".css"].iter().any(|end| text.ends_with(end)))
    {
        assert!(!attribute.contains("//"), "{attribute} is somewhere else");
        app.get(&format!("/docs/{}", attribute.trim_start_matches("./")))
            .await
            .expect(200);
        assets += 1;
    }
    assert!(assets >= 3, "{}", page.text);
}
