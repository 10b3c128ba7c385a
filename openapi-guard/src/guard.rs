//! Collects violations during a test, and fails the test at its end.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use serde_json::Value;

use crate::document::Document;

/// Dropping a guard panics if one of its checkers found a violation, so that the test it belongs to fails.
#[derive(Debug)]
pub struct Guard {
    document: Option<Arc<Document>>,
    violations: Arc<Mutex<Vec<String>>>,
    excused_statuses: Mutex<Vec<Value>>,
}

impl Guard {
    /// A guard for the document that `DOJO_OPENAPI` names. Fails if the document can't be read.
    pub fn from_env() -> io::Result<Self> {
        Ok(Self::new(Document::from_env()?))
    }

    fn new(document: Option<Arc<Document>>) -> Self {
        Self {
            document,
            violations: Arc::default(),
            excused_statuses: Mutex::default(),
        }
    }

    /// A function that checks responses, or `None` without a document. A call without a response passes.
    pub fn response_checker(
        &self,
    ) -> Option<impl Fn(&Request<Bytes>, Option<&Response<Bytes>>) + Send + Sync + use<>> {
        self.checker(|_, _| Vec::new())
    }

    /// A function that checks requests and responses, or `None` without a document.
    pub fn call_checker(
        &self,
    ) -> Option<impl Fn(&Request<Bytes>, Option<&Response<Bytes>>) + Send + Sync + use<>> {
        self.checker(Document::request_violations)
    }

    /// Accepts an intent status that the document doesn't list, because the test made the sandbox return it.
    pub fn excuse_status(&self, status: &Value) {
        lock(&self.excused_statuses).push(status.clone());
    }

    fn checker<C>(
        &self,
        check_request: C,
    ) -> Option<impl Fn(&Request<Bytes>, Option<&Response<Bytes>>) + Send + Sync + use<C>>
    where
        C: Fn(&Document, &Request<Bytes>) -> Vec<String> + Send + Sync,
    {
        let document = self.document.clone()?;
        let violations = Arc::clone(&self.violations);
        Some(
            move |request: &Request<Bytes>, response: Option<&Response<Bytes>>| {
                let mut found = check_request(&document, request);
                if let Some(response) = response {
                    found.extend(document.response_violations(request, response));
                }
                lock(&violations).extend(found);
            },
        )
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let excused = lock(&self.excused_statuses);
        let mut violations = lock(&self.violations);
        violations.retain(|violation| {
            !excused
                .iter()
                .any(|status| violation.contains(&format!("/status: {status} is not one of")))
        });
        assert!(
            violations.is_empty(),
            "violations of Dojo's OpenAPI document: {violations:#?}"
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use http::{Request, Response};
    use serde_json::json;

    use super::{Document, Guard};

    fn guard() -> Guard {
        let status = json!({"type": "string", "enum": ["Created"]});
        let intent = json!({"type": "object", "properties": {"status": status}});
        let responses = json!({"200": {"content": {"application/json": {"schema": intent}}}});
        let document =
            json!({"paths": {"/payment-intents/{id}": {"get": {"responses": responses}}}});
        Guard::new(Some(Arc::new(Document::new(document))))
    }

    fn get_intent(guard: &Guard, status: &str) {
        let check = guard.response_checker().expect("a document");
        let request = Request::get("/payment-intents/pi_1").body(Bytes::new());
        let response = Response::builder()
            .header("content-type", "application/json")
            .body(json!({"status": status}).to_string().into());
        check(
            &request.expect("a request"),
            Some(&response.expect("a response")),
        );
    }

    #[test]
    fn valid_responses_pass() {
        get_intent(&guard(), "Created");
    }

    #[test]
    #[should_panic(expected = "violations of Dojo's OpenAPI document")]
    fn a_violation_panics_when_the_guard_is_dropped() {
        get_intent(&guard(), "Pondering");
    }

    #[test]
    fn an_excused_status_passes() {
        let guard = guard();
        get_intent(&guard, "Pondering");
        guard.excuse_status(&json!("Pondering"));
    }
}
