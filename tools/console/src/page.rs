//! The page: server-rendered, without JavaScript, in one column that fits a phone.

use std::collections::{BTreeMap, BTreeSet};

use aws_session::clock::utc_text;
use broker_api::{Overview, SessionPhase};
use code_channel::writer::Outcome;
use maud::{DOCTYPE, Markup, html};

use crate::view::{Stored, View};

/// Renders the page at the time `now`.
pub(crate) fn render(
    view: &Result<View, String>,
    last_code: Option<&(i64, Option<Outcome>)>,
    token: &str,
    host: &str,
    now: i64,
) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title(view)) " – " (host) " – IAM KMS console" }
                link rel="stylesheet" href="/style.css";
            }
            body {
                header { h1 { "IAM KMS console on " (host) } }
                main {
                    p { "As of " (utc_text(now)) ". " a href="/" { "Reload" } }
                    @match view {
                        Ok(view) => (session(&view.overview, now)),
                        Err(why) => section aria-labelledby="session" {
                            h2 id="session" { "Session" }
                            p.state { strong { "Unknown. " } (why) }
                        },
                    }
                    (code(last_code, token))
                    @if let Ok(view) = view {
                        (clients(&view.overview))
                        @if !view.overview.certificates.is_empty() {
                            (certificates(&view.overview, now))
                        }
                        (keys(view))
                        (calls(&view.overview))
                        (events(view))
                    }
                }
            }
        }
    };
    page.into_string()
}

fn title(view: &Result<View, String>) -> &'static str {
    match view.as_ref().map(|view| view.overview.session.phase) {
        Ok(SessionPhase::Open) => "Session open",
        Ok(SessionPhase::AwaitingCode) => "Code awaited",
        Ok(SessionPhase::Failed) => "No session",
        Err(_) => "Broker not reached",
    }
}

fn session(overview: &Overview, now: i64) -> Markup {
    let session = &overview.session;
    let end = session.expiration_unix_seconds;
    html! {
        section aria-labelledby="session" {
            h2 id="session" { "Session" }
            @match session.phase {
                SessionPhase::Open => p.state.open {
                    strong { "Open" }
                    @match end {
                        Some(end) => { " until " (utc_text(end)) ", for another " (duration_text(end - now)) "." },
                        None => ". It does not expire.",
                    }
                },
                SessionPhase::AwaitingCode => p.state {
                    strong { "A code is awaited." }
                    @if let Some(end) = end { " The last session ended at " (utc_text(end)) "." }
                },
                SessionPhase::Failed => p.state {
                    strong { "There is no session, and none can be opened." } " See the broker's log."
                },
            }
            p {
                "KMS in " (session.kms.region)
                @if let Some(store) = &session.key_store { ", key store " (store) }
                ". The broker started at " (utc_text(overview.start_unix_seconds)) "."
            }
        }
    }
}

fn code(last_code: Option<&(i64, Option<Outcome>)>, token: &str) -> Markup {
    html! {
        section aria-labelledby="enter" {
            h2 id="enter" { "Enter a code" }
            @if let Some((time, entered)) = last_code {
                p role="status" {
                    "The last code, entered here at " (utc_text(*time)) ", "
                    @match entered {
                        None => { "is being exchanged for a session; reload the page to see what became of it" },
                        Some(Outcome::Accepted(text)) => { "was " strong.good { "accepted" } ": " (text) },
                        Some(Outcome::Refused(why)) => { "was " strong.bad { "not accepted" } ": " (why) },
                        Some(Outcome::Unknown(why)) => { "has " strong.bad { "no known result" } ": " (why) },
                    }
                    "."
                }
            }
            form method="post" action="/code" {
                input type="hidden" name="token" value=(token);
                div {
                    label for="code" { "MFA code, six digits" }
                    input id="code" name="code" type="text" inputmode="numeric" autocomplete="one-time-code"
                        pattern="[0-9]{6}" maxlength="6" size="8" required;
                }
                div {
                    label for="reason" { "Reason, for the audit (optional)" }
                    input id="reason" name="reason" type="text" maxlength="200" autocomplete="off";
                }
                button type="submit" { "Open the session" }
            }
        }
    }
}

fn clients(overview: &Overview) -> Markup {
    let shown = overview.clients.len() as u64;
    html! {
        section aria-labelledby="clients" {
            h2 id="clients" { "Clients" }
            @if overview.clients.is_empty() {
                p { "No client has made a call since the broker started." }
            } @else {
                @if overview.clients_seen > shown {
                    p { "Of " (overview.clients_seen) " clients, the last " (shown) " are shown. The broker's metrics have the connections of all." }
                }
                (table("clients", &["Client", "Connections", "Calls", "Last call"], &html! {
                    @for client in &overview.clients {
                        tr {
                            th scope="row" { (client.name) }
                            td.number { (client.connections) }
                            td.number { (client.calls) }
                            td.number { (utc_text(client.last_call_unix_seconds)) }
                        }
                    }
                }))
            }
        }
    }
}

fn certificates(overview: &Overview, now: i64) -> Markup {
    html! {
        section aria-labelledby="certificates" {
            h2 id="certificates" { "Certificates" }
            (table("certificates", &["File", "Ends", "In"], &html! {
                @for certificate in &overview.certificates {
                    @let end = certificate.expiration_unix_seconds;
                    tr {
                        th scope="row" { (certificate.file) }
                        td.number { (utc_text(end)) }
                        td.number { (duration_text(end - now)) }
                    }
                }
            }))
        }
    }
}

fn keys(view: &View) -> Markup {
    let mut rows: BTreeMap<(u32, u32), Option<i64>> = BTreeMap::new();
    let mut in_store = BTreeSet::new();
    if let Stored::Keys(stored) = &view.stored {
        in_store.extend(stored.iter().copied());
        rows.extend(stored.iter().map(|key| (*key, None)));
    }
    for key in &view.overview.keys {
        let last = Some(key.last_served_unix_seconds);
        rows.insert((key.key_id, key.key_version), last);
    }
    let shown = view.overview.keys.len() as u64;
    html! {
        section aria-labelledby="keys" {
            h2 id="keys" { "Data keys" }
            @match &view.stored {
                Stored::Unreadable(why) => p { strong.bad { "The key store could not be read" } ": " (why) "." },
                Stored::NoSession => p { "What the key store has is not known without a session." },
                Stored::NoStore | Stored::Keys(_) => {},
            }
            @if view.overview.keys_served > shown {
                p { "Of " (view.overview.keys_served) " versions that were served, the last " (shown) " are shown." }
            }
            @if rows.is_empty() {
                p {
                    "No key version was served since the broker started. New keys that are in no key store are not "
                    "counted before a server reads them again."
                }
            } @else {
                (table("keys", &["Key", "Version", "In the key store", "Last served"], &html! {
                    @for ((id, version), last) in &rows {
                        tr {
                            th.number scope="row" { (id) }
                            td.number { (version) }
                            td {
                                @match &view.stored {
                                    Stored::NoStore => "there is none",
                                    Stored::NoSession | Stored::Unreadable(_) => "unknown",
                                    Stored::Keys(_) if in_store.contains(&(*id, *version)) => "yes",
                                    Stored::Keys(_) => strong.bad { "no" },
                                }
                            }
                            td.number {
                                @match last { Some(last) => (utc_text(*last)), None => "not since the start" }
                            }
                        }
                    }
                }))
            }
        }
    }
}

fn calls(overview: &Overview) -> Markup {
    html! {
        section aria-labelledby="calls" {
            h2 id="calls" { "Calls" }
            @if let Some((time, why)) = &overview.last_failure {
                p { "The last failure was at " (utc_text(*time)) ": " (why) }
            }
            @if overview.calls.is_empty() {
                p { "None since the broker started." }
            } @else {
                (table("calls", &["Operation", "Result", "Calls"], &html! {
                    @for call in &overview.calls {
                        tr {
                            th scope="row" { (call.operation) }
                            td { (call.result) }
                            td.number { (call.count) }
                        }
                    }
                }))
            }
        }
    }
}

fn events(view: &View) -> Markup {
    html! {
        section aria-labelledby="audit" {
            h2 id="audit" { "Audit" }
            p { "The last " (view.events.len()) " events since the broker started." }
            (table("audit", &["Time", "Event", "What happened"], &html! {
                @for event in &view.events {
                    tr {
                        td.number { (utc_text(event.unix_seconds)) }
                        td { (event.name) }
                        td.long { (event.message) }
                    }
                }
            }))
        }
    }
}

/// A table that scrolls by itself where it is too wide, also with the keyboard.
fn table(labelled_by: &str, columns: &[&str], rows: &Markup) -> Markup {
    html! {
        div.scroll role="group" aria-labelledby=(labelled_by) tabindex="0" {
            table {
                thead { tr { @for column in columns { th scope="col" { (column) } } } }
                tbody { (rows) }
            }
        }
    }
}

fn duration_text(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, rest) = (seconds / 60, seconds % 60);
    match minutes {
        0 => format!("{rest} s"),
        1..60 => format!("{minutes} min {rest} s"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_escaped() {
        let why = "<script>alert(1)</script>".to_owned();
        let last = (0, Some(Outcome::Refused("<b>".into())));
        let page = render(&Err(why), Some(&last), "token", "<i>", 0);
        assert!(page.contains("&lt;script&gt;"), "{page}");
        assert!(
            page.contains("&lt;b&gt;") && !page.contains("<script") && !page.contains("<i>"),
            "{page}"
        );
    }

    #[test]
    fn durations_are_short() {
        let texts = [-5, 59, 840, 129_600].map(duration_text);
        assert_eq!(texts, ["0 s", "59 s", "14 min 0 s", "36 h 0 min"]);
    }
}
