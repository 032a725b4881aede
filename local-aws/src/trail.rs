//! The call log: one record a call, in the form of CloudTrail's, without a secret in it.
//!
//! Source: <https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html>.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::caller::{Caller, Principal};
use crate::error::ApiError;
use crate::operation::Operation;
use crate::service::Service;
use crate::state::State;

/// The log's name in the state directory.
pub const FILE: &str = "cloudtrail.jsonl";

/// The parameters that the log shows. All others are secret, long, or unknown to this program.
const SHOWN: [&str; 26] = [
    "AliasName",
    "BypassPolicyLockoutSafetyCheck",
    "CustomerMasterKeySpec",
    "Description",
    "DestinationEncryptionAlgorithm",
    "DestinationEncryptionContext",
    "DestinationKeyId",
    "DryRun",
    "DurationSeconds",
    "EncryptionAlgorithm",
    "EncryptionContext",
    "KeyId",
    "KeySpec",
    "KeyUsage",
    "NumberOfBytes",
    "Origin",
    "PendingWindowInDays",
    "Policy",
    "PolicyName",
    "RoleArn",
    "RoleSessionName",
    "SerialNumber",
    "SourceEncryptionAlgorithm",
    "SourceEncryptionContext",
    "SourceKeyId",
    "TargetKeyId",
];

/// The operations that change something.
const CHANGING: [&str; 7] = [
    "CancelKeyDeletion",
    "CreateAlias",
    "CreateKey",
    "DisableKey",
    "EnableKey",
    "PutKeyPolicy",
    "ScheduleKeyDeletion",
];

/// What happened to a call.
pub struct Event<'a> {
    /// What was asked for.
    pub operation: &'a Operation,
    /// By whom; `None` if that is not known.
    pub caller: Option<&'a Caller>,
    /// From where.
    pub source_ip: IpAddr,
    /// The `User-Agent` header.
    pub user_agent: Option<&'a str>,
    /// The error code and message, if it failed.
    pub error: Option<(&'a str, &'a str)>,
    /// The keys that were used.
    pub key_arns: &'a [String],
    /// When, by the server's clock.
    pub time: Timestamp,
    /// The id in the answer's `x-amzn-RequestId`.
    pub request_id: &'a str,
}

/// The record of an event, as one line.
pub fn line(state: &State, event: &Event<'_>) -> String {
    let service = event.operation.service;
    let mut record = json!({
        "eventVersion": "1.11",
        "userIdentity": event.caller.map_or_else(
            || json!({ "type": "Unknown" }),
            |caller| user_identity(state, caller),
        ),
        "eventTime": time(event.time),
        "eventSource": format!("{}.amazonaws.com", service.name()),
        "eventName": event.operation.name,
        "awsRegion": event.caller.map_or(&state.region, |caller| &caller.region),
        "sourceIPAddress": event.source_ip,
        "userAgent": event.user_agent,
        "requestParameters": request_parameters(event.operation.parameters.as_ref()),
        "responseElements": null,
        "requestID": event.request_id,
        "eventID": Uuid::new_v4(),
        "readOnly": !CHANGING.contains(&event.operation.name.as_str()),
        "eventType": "AwsApiCall",
        "managementEvent": true,
        "recipientAccountId": state.account,
        "eventCategory": "Management",
    });
    if let Some((code, message)) = event.error {
        record["errorCode"] = code.into();
        record["errorMessage"] = message.into();
    }
    if service == Service::Kms {
        let resource =
            |arn| json!({ "accountId": state.account, "type": "AWS::KMS::Key", "ARN": arn });
        record["resources"] = event.key_arns.iter().map(resource).collect();
    }
    format!("{record}\n")
}

fn user_identity(state: &State, caller: &Caller) -> Value {
    let mut identity = json!({
        "type": "IAMUser",
        "principalId": caller.principal.user_id(state),
        "arn": caller.principal.arn(state),
        "accountId": state.account,
        "accessKeyId": caller.access_key_id,
    });
    let mut session_context = json!({});
    match &caller.principal {
        Principal::User { name } => identity["userName"] = name.as_str().into(),
        Principal::AssumedRole { role, .. } => {
            identity["type"] = "AssumedRole".into();
            session_context["sessionIssuer"] = json!({
                "type": "Role",
                "principalId": state.roles.get(role).map(|role| &role.role_id),
                "arn": state.role_arn(role),
                "accountId": state.account,
                "userName": role,
            });
        }
    }
    if let Some(session) = &caller.session {
        session_context["attributes"] = json!({
            "creationDate": time(session.created),
            "mfaAuthenticated": session.mfa.to_string(),
        });
        identity["sessionContext"] = session_context;
    }
    identity
}

/// The parameters as CloudTrail names them, with a small first letter.
fn request_parameters(parameters: Result<&Map<String, Value>, &ApiError>) -> Value {
    let Ok(parameters) = parameters else {
        return Value::Null;
    };
    let shown = parameters
        .iter()
        .filter(|(name, _)| SHOWN.contains(&name.as_str()));
    let named = shown.map(|(name, value)| (lower_first(name), value.clone()));
    Value::Object(named.collect())
}

fn lower_first(name: &str) -> String {
    let mut characters = name.chars();
    let first = characters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(characters).collect()
}

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
