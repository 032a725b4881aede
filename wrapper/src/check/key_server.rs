//! The certificates of a key server or of its client, and whether the key servers answer.

use std::time::Duration;

use aws_session::{
    clock::utc_text,
    config::{KeyServerConfig, ServerAddress, UpstreamConfig},
};
use broker_api::{FrameError, Reply, Request, SessionPhase, read_frame, write_frame};
use mutual_tls::{ClientTls, Content, ServerTls};

use super::Finding;

/// How long a key server may take for each step.
const PATIENCE: Duration = Duration::from_secs(5);

/// Checks the files of a key server.
pub(super) fn check_server(config: &KeyServerConfig) -> Finding {
    let tls = Content::read(&config.tls)
        .and_then(|content| ServerTls::for_brokers(&config.tls, &content));
    let count = config.clients.len();
    Finding::of(tls, |tls| {
        format!(
            "the certificate {} is valid until {}, and there {} for database hosts",
            config.tls.certificate.display(),
            utc_text(tls.certificate.not_after_unix_seconds),
            match count {
                1 => "is 1 section".into(),
                count => format!("are {count} sections"),
            }
        )
    })
}

/// Checks the files of a client, and connects to each of its servers.
pub(super) fn check_upstream(config: &UpstreamConfig) -> Vec<(String, Finding)> {
    let tls = Content::read(&config.tls).and_then(|content| ClientTls::new(&config.tls, &content));
    let tls = match tls {
        Ok(tls) => tls,
        Err(failure) => {
            let finding = Finding::Failure(failure.to_string());
            return vec![("certificate".into(), finding)];
        }
    };
    let valid = format!(
        "{} is valid until {}",
        config.tls.certificate.display(),
        utc_text(tls.certificate.not_after_unix_seconds)
    );
    let mut findings = vec![("certificate".into(), Finding::Fine(valid))];
    for server in &config.servers {
        let finding = Finding::of(ask(&tls, server), |state| state);
        findings.push((format!("key server {server}"), finding));
    }
    findings
}

fn ask(tls: &ClientTls, server: &ServerAddress) -> Result<String, String> {
    let mut stream = tls.connect_blocking(server, PATIENCE)?;
    let answered =
        write_frame(&mut stream, &Request::Session).and_then(|()| read_frame::<Reply>(&mut stream));
    match answered {
        Ok(Reply::Session(state)) => Ok(match state.phase {
            SessionPhase::Open => "it serves this host, and has a session".into(),
            SessionPhase::AwaitingCode => "it serves this host, and waits for an MFA code".into(),
            SessionPhase::Failed => {
                "it serves this host, and cannot get a session; see its log".into()
            }
        }),
        Ok(Reply::Failed(failure)) => Err(failure.message),
        Ok(_) => Err("it sent an unexpected reply; install the same release on both hosts".into()),
        Err(FrameError::Io(error)) => Err(mutual_tls::reason(error)),
        Err(error) => Err(error.to_string()),
    }
}
