use type_safe_id::{StaticType, TypeSafeId};

/// Only names the prefix of a payment link's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PaymentLinkPrefix;

impl StaticType for PaymentLinkPrefix {
    const TYPE: &'static str = "plink";
}

/// A payment link's id: a [TypeID](https://github.com/jetify-com/typeid), `plink_` and 26 characters that encode a version 7
/// UUID. It sorts by time of creation and is stored as that UUID.
pub type PaymentLinkId = TypeSafeId<PaymentLinkPrefix>;

/// Only names the prefix of an operation's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct OperationPrefix;

impl StaticType for OperationPrefix {
    const TYPE: &'static str = "op";
}

/// An operation's id: a TypeID like a link's, `op_` and 26 characters.
pub type OperationId = TypeSafeId<OperationPrefix>;

/// Only names the prefix of a message's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MessagePrefix;

impl StaticType for MessagePrefix {
    const TYPE: &'static str = "msg";
}

/// A message's id: a TypeID like a link's, `msg_` and 26 characters.
pub type MessageId = TypeSafeId<MessagePrefix>;

/// Only names the prefix of an event's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EventPrefix;

impl StaticType for EventPrefix {
    const TYPE: &'static str = "evt";
}

/// The id of an event in the feed: a TypeID like a link's, `evt_` and 26 characters.
pub type EventId = TypeSafeId<EventPrefix>;

/// Only names the prefix of a movement's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MovementPrefix;

impl StaticType for MovementPrefix {
    const TYPE: &'static str = "mov";
}

/// A movement's id: a TypeID like a link's, `mov_` and 26 characters.
pub type MovementId = TypeSafeId<MovementPrefix>;
