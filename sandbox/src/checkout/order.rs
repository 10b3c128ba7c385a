//! The lines of the order.

use crate::intents::Intent;
use crate::money::Money;

pub(super) struct Line {
    pub(super) name: String,
    pub(super) notes: Vec<String>,
    pub(super) amount: String,
    /// Whether the line is a tax or an extra charge, and not an item.
    pub(super) extra: bool,
}

/// The items, then the taxes, then the extra charges.
pub(super) fn lines(intent: &Intent) -> Vec<Line> {
    let mut lines = Vec::new();
    for item in &intent.item_lines {
        let name = item.name.as_deref().unwrap_or("Item");
        let name = match item.quantity {
            Some(quantity) if quantity != 1 => format!("{quantity} × {name}"),
            _ => name.to_owned(),
        };
        let modifiers = item
            .modifiers
            .as_ref()
            .and_then(|modifiers| modifiers.as_array());
        let notes = modifiers
            .into_iter()
            .flatten()
            .filter_map(modifier)
            .collect();
        let amount = item
            .amount_total
            .map(|amount| amount.to_string())
            .unwrap_or_default();
        lines.push(Line {
            name,
            notes,
            amount,
            extra: false,
        });
    }
    for tax in &intent.tax_lines {
        lines.push(Line {
            name: tax.caption.clone().unwrap_or_else(|| "Tax".to_owned()),
            notes: tax.sub_caption.iter().cloned().collect(),
            amount: tax.amount_total.to_string(),
            extra: true,
        });
    }
    for (name, amount) in [
        ("Tip", intent.tips_amount),
        ("Service charge", intent.service_charge_amount),
        ("Cashback", intent.cashback_amount),
    ] {
        if let Some(amount) = amount.filter(|amount| amount.value != 0) {
            let (name, amount) = (name.to_owned(), amount.to_string());
            lines.push(Line {
                name,
                notes: Vec::new(),
                amount,
                extra: true,
            });
        }
    }
    lines
}

/// `2 × Extra cheese, £1.00`
fn modifier(modifier: &serde_json::Value) -> Option<String> {
    let name = modifier["name"].as_str()?;
    let amount: Money = serde_json::from_value(modifier["amountPerModifier"].clone()).ok()?;
    let quantity = match modifier["quantity"].as_i64() {
        Some(1) | None => String::new(),
        Some(quantity) => format!("{quantity} × "),
    };
    Some(if amount.value == 0 {
        format!("{quantity}{name}")
    } else {
        format!("{quantity}{name}, {amount}")
    })
}
