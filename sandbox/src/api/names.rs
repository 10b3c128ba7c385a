//! Member names in .NET's spelling, which Dojo's API accepts in requests and uses in errors.

use serde_json::Value;

/// Makes the first letter of every member lower-case. Dojo accepts `AutoExpireIn` for `autoExpireIn`, and its own
/// example of manual capture contains it.
pub(super) fn lower_initials(value: &mut Value) {
    match value {
        Value::Object(members) => {
            *members = std::mem::take(members)
                .into_iter()
                .map(|(name, mut member)| {
                    let name = lower_initial(&name);
                    // The caller chooses the keys of metadata.
                    if name != "metadata" {
                        lower_initials(&mut member);
                    }
                    (name, member)
                })
                .collect();
        }
        Value::Array(items) => items.iter_mut().for_each(lower_initials),
        _ => {}
    }
}

fn lower_initial(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

/// A JSON pointer as .NET writes it: `/itemLines/0/amountTotal` becomes `ItemLines[0].AmountTotal`.
pub(super) fn field_name(pointer: &str) -> String {
    let mut name = String::new();
    for part in pointer.split('/').filter(|part| !part.is_empty()) {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            name.push('[');
            name.push_str(part);
            name.push(']');
            continue;
        }
        if !name.is_empty() {
            name.push('.');
        }
        let mut letters = part.chars();
        name.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        name.extend(letters);
    }
    if name.is_empty() {
        "$".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{field_name, lower_initials};

    #[test]
    fn writes_field_names_as_dot_net_does() {
        assert_eq!(
            field_name("/itemLines/0/amountTotal"),
            "ItemLines[0].AmountTotal"
        );
        assert_eq!(field_name(""), "$");
    }

    #[test]
    fn lowers_initials_except_in_metadata() {
        let mut body = json!({"AutoExpireIn": "00:00:55", "Metadata": {"Site": "1"}});
        lower_initials(&mut body);
        assert_eq!(
            body,
            json!({"autoExpireIn": "00:00:55", "metadata": {"Site": "1"}})
        );
    }
}
