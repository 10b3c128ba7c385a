use serde_json::Value;

use super::super::Fault;

/// Checks the rules for an operation's body that its JSON schema can't express. Returns a fault for each broken rule. Like
/// [`super::super::broken_rules`], it works on the JSON, so that all faults of a body are reported at once.
#[must_use]
pub fn broken_rules(body: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    let value = |name: &str| {
        body.pointer(&format!("/{name}/value"))
            .and_then(Value::as_i64)
    };
    if value("amount").is_some_and(|value| value < 1) {
        faults.push(Fault::new("/amount/value", "must be at least 1"));
    }
    if value("tipsAmount").is_some_and(|value| value < 0) {
        faults.push(Fault::new("/tipsAmount/value", "must not be negative"));
    }
    for (index, email) in body["emails"].as_array().into_iter().flatten().enumerate() {
        if email
            .as_str()
            .is_some_and(|email| !is_plausible_address(email))
        {
            faults.push(Fault::new(
                format!("/emails/{index}"),
                "must be an email address",
            ));
        }
    }
    faults
}

/// Finds typing errors. Only sending an email shows whether its address exists (RFC 5321, section 3.3).
fn is_plausible_address(email: &str) -> bool {
    let parts = email.rsplit_once('@');
    parts.is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty())
        && email.len() <= 254
        && !email.contains(|c: char| c.is_whitespace() || c.is_control())
}
