//! The events of the audit: their names, their fields, and what these mean. The log writes no others
//! (`tests/src/audit_events.rs` compares), and `docs/src/audit.md` shows these tables.

/// An event.
#[derive(Debug, Clone, Copy)]
pub struct AuditEvent {
    /// The value of the field `event`.
    pub name: &'static str,
    /// When it is written, in Markdown.
    pub when: &'static str,
    /// Its further fields. Where one does not apply, the event is without it.
    pub fields: &'static [&'static str],
}

/// A field.
#[derive(Debug, Clone, Copy)]
pub struct AuditField {
    /// Its name in JSON. In the journal, it is `IAM_KMS_` and the name in capitals.
    pub name: &'static str,
    /// Whether it is a number.
    pub is_number: bool,
    /// What it says, in Markdown.
    pub meaning: &'static str,
}

const ENTERED: &[&str] = &["access_key_id", "expiration", "operator", "from", "reason"];
const SESSION: &[&str] = &["access_key_id", "expiration"];

/// Of a call, and who made it.
const CALL: &[&str] = &[
    "operation",
    "request_id",
    "master_key",
    "key_id",
    "key_version",
    "peer_uid",
    "peer_pid",
    "client",
    "address",
];

/// All events.
pub const EVENTS: &[AuditEvent] = &[
    event("prompt", "a code is awaited", &[]),
    event(
        "code_taken",
        "AWS has accepted a code, and given a session",
        &[
            "mfa_device",
            "access_key_id",
            "expiration",
            "operator",
            "from",
            "reason",
        ],
    ),
    event(
        "code_refused",
        "AWS has refused a code, or it was not sent there; the message says why",
        &[],
    ),
    event(
        "session_document_taken",
        "a session that was opened elsewhere was entered",
        ENTERED,
    ),
    event(
        "input_refused",
        "something other than a code was entered",
        &[],
    ),
    event(
        "input_vanished",
        "something was written to the FIFO, and another process read it",
        &[],
    ),
    event("session_open", "a session begins", SESSION),
    event("session_end", "a session ends", &["access_key_id"]),
    event(
        "kept_session_refused",
        "the session that systemd has kept is not the one that was stored",
        &[],
    ),
    event("kms_call", "a data key was made or decrypted", CALL),
    event(
        "key_store_call",
        "a data key was looked for, or made, in the key store",
        CALL,
    ),
    event(
        "kms_call_failed",
        "one of these failed",
        &[
            "operation",
            "kind",
            "key_id",
            "key_version",
            "peer_uid",
            "peer_pid",
            "client",
            "address",
        ],
    ),
    event(
        "key_store",
        "the key store can be used",
        &["key_store", "versions"],
    ),
    event(
        "key_store_failed",
        "the key store, or an object in it, cannot be used",
        &[],
    ),
    event(
        "master_key_changed",
        "`kms-manage-key` enables or disables the master key, and KMS has accepted that",
        &[
            "operation",
            "request_id",
            "master_key",
            "caller",
            "operator",
            "from",
            "reason",
        ],
    ),
    event(
        "peer_refused",
        "another user tried the broker's socket, or one user has too many connections",
        &["peer_uid", "peer_pid"],
    ),
    event(
        "client_refused",
        "a key server has refused a host, or closed its connection; the message says why",
        &["client", "address"],
    ),
    event(
        "operator_refused",
        "`iam-kms-console` has refused a person over TLS; the message says why",
        &["address"],
    ),
    event(
        "clients_loaded",
        "a key server has reloaded its `[client]` sections",
        &[],
    ),
    event(
        "clients_failed",
        "a key server could not reload its `[client]` sections",
        &[],
    ),
    event("certificate_loaded", "a certificate was reloaded", &[]),
    event(
        "certificate_failed",
        "a certificate could not be reloaded",
        &[],
    ),
    event("certificate_end", "a certificate expires soon", &[]),
    event(
        "upstream",
        "the broker of a database host asks another key server, or one answers again",
        &[],
    ),
    event(
        "upstream_failed",
        "no key server could serve a request, or only some answer and have no session",
        &[],
    ),
    event(
        "log_lost",
        "the journal did not accept events in time",
        &["lost"],
    ),
];

/// All fields, but `event` itself.
pub const FIELDS: &[AuditField] = &[
    text(
        "access_key_id",
        "The id of the session's temporary key, as in CloudTrail's `userIdentity.accessKeyId`",
    ),
    text(
        "address",
        "Address and port of a host that asks a key server, or of a person's browser",
    ),
    text("caller", "The ARN of the user or role that AWS saw"),
    text(
        "client",
        "The client of a key server, by the name of its section; absent if the host is not a client",
    ),
    text("expiration", "When the session ends (RFC 3339, UTC)"),
    text(
        "from",
        "The address from which the operator came with ssh or, over TLS, to the console, as their program says",
    ),
    number(
        "key_id",
        "The key id, as the server says; 0 if it is not known",
    ),
    text("key_store", "Where the key store is"),
    number(
        "key_version",
        "The key version, as the server says; 0 for a new one",
    ),
    text("kind", "The kind of failure"),
    number("lost", "How many events were dropped"),
    text("master_key", "The ARN of the master key"),
    text("mfa_device", "The MFA device whose code AWS accepted"),
    text(
        "operation",
        "The operation of KMS, `FindKey`, `MakeKey` or `ListKeys` of the key store, or `GetKey` of a key server",
    ),
    text(
        "operator",
        "The user who logged in on this host, as their program says",
    ),
    number("peer_pid", "The process that asked the broker"),
    number("peer_uid", "The user who asked the broker"),
    text("reason", "What the operator gave as `--reason`"),
    text(
        "request_id",
        "KMS's request id, as in CloudTrail; absent if the key came from the broker's cache",
    ),
    number("versions", "How many key versions the key store has"),
];

const fn event(
    name: &'static str,
    when: &'static str,
    fields: &'static [&'static str],
) -> AuditEvent {
    AuditEvent { name, when, fields }
}

const fn text(name: &'static str, meaning: &'static str) -> AuditField {
    AuditField {
        name,
        is_number: false,
        meaning,
    }
}

const fn number(name: &'static str, meaning: &'static str) -> AuditField {
    AuditField {
        name,
        is_number: true,
        meaning,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_field_of_an_event_has_a_meaning_and_each_meaning_a_field() {
        let used: BTreeSet<_> = EVENTS.iter().flat_map(|event| event.fields).collect();
        let explained: BTreeSet<_> = FIELDS.iter().map(|field| &field.name).collect();
        assert_eq!(used, explained);
        assert_eq!(explained.len(), FIELDS.len());
    }
}
