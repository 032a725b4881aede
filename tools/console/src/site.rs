//! Which requests are answered: the page, its style, and a code, with a token that only the page has.

use std::{io, net::IpAddr, path::Path, sync::Arc};

use aws_session::clock::unix_seconds_now;
use axum::{
    Extension, Form, Router,
    body::{Body, to_bytes},
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{self, HeaderName},
    },
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use code_channel::note::Note;
use local_http::{Incoming, Request};
use nix::unistd::gethostname;
use serde::Deserialize;
use subtle::ConstantTimeEq;
use tokio::{task::spawn_blocking, time::timeout};
use tower::ServiceExt;
use zeroize::Zeroizing;

use crate::{LIMITS, codes::Codes, page, view::Broker};

/// Longest body of a request: a code, a reason and the token.
const MAX_BODY_BYTES: usize = 2048;

const STYLE: &str = include_str!("style.css");

/// Nothing but the page's own style and form. Source: <https://www.w3.org/TR/CSP3/>.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::CACHE_CONTROL, "no-store"),
    // With no-referrer, browsers would hide the origin of the form, too.
    (header::REFERRER_POLICY, "same-origin"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// Who uses the page.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    /// For the audit.
    pub operator: String,
    /// Their address, if it is known.
    pub from: Option<IpAddr>,
    /// How they have reached the page.
    pub scheme: &'static str,
}

/// What the page's form sends.
#[derive(Default, Deserialize)]
#[serde(default)]
struct CodeForm {
    token: Zeroizing<String>,
    code: Zeroizing<String>,
    reason: String,
}

/// An answer without the page.
type Refusal = (StatusCode, &'static str);

/// The site.
pub(crate) struct Site {
    broker: Broker,
    codes: Codes,
    /// Whoever sends it has read the page, which other sites cannot.
    token: String,
    /// Which host this is: over ssh -L, the address of each is the same.
    host: String,
}

impl Site {
    pub fn new(overview_socket: &Path, fifo: &Path) -> io::Result<Self> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|_| io::ErrorKind::Other)?;
        Ok(Self {
            broker: Broker::new(overview_socket),
            codes: Codes::new(fifo, Broker::new(overview_socket))?,
            token: random.iter().map(|byte| format!("{byte:02x}")).collect(),
            host: gethostname().unwrap_or_default().to_string_lossy().into(),
        })
    }

    /// Its routes. Each request needs a [`Visitor`] as an extension.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/", get(show))
            .route("/style.css", get(style))
            .route("/code", post(enter))
            .with_state(Arc::new(self))
    }
}

async fn show(State(site): State<Arc<Site>>) -> Result<Html<String>, Refusal> {
    let rendered = spawn_blocking(move || {
        let view = site.broker.view();
        let last_code = site.codes.last();
        let now = unix_seconds_now();
        page::render(&view, last_code.as_ref(), &site.token, &site.host, now)
    });
    rendered.await.map(Html).map_err(|_| {
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal error; see the log of iam-kms-console\n",
        )
    })
}

async fn style() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}

/// Takes a code, and leads back to the page, so that a reload sends it no second time.
async fn enter(
    State(site): State<Arc<Site>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    Form(form): Form<CodeForm>,
) -> Result<Redirect, Refusal> {
    let forbidden = |why| Err((StatusCode::FORBIDDEN, why));
    if !is_of_own_page(&headers, visitor.scheme) {
        return forbidden("sent by another site\n");
    }
    if !bool::from(form.token.as_bytes().ct_eq(site.token.as_bytes())) {
        return forbidden("the page is from before a restart of the console; reload it\n");
    }
    let note = Note {
        operator: Some(visitor.operator),
        from: visitor.from.map(|address| address.to_string()),
        reason: None,
    };
    // It goes on when the browser closes the connection, as it does when the form is sent a second time.
    let entering = spawn_blocking(move || site.codes.enter(&form.code, &form.reason, note));
    // The page shows what became of it. A panic is in the log.
    let _ = entering.await;
    Ok(Redirect::to("/"))
}

fn with_headers(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// Answers a request of a visitor.
pub(crate) async fn answer(
    routes: &Router,
    visitor: Visitor,
    request: Request<Incoming>,
) -> Response {
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(visitor);
    // All of it before anything else, so that a slow visitor does not keep a place for as long as an answer may take.
    let body = timeout(LIMITS.transfer, to_bytes(Body::new(body), MAX_BODY_BYTES));
    let response = match body.await {
        Ok(Ok(body)) => {
            let request = Request::from_parts(parts, Body::from(body));
            match routes.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
        Ok(Err(_)) => (StatusCode::PAYLOAD_TOO_LARGE, "too long\n").into_response(),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "too slow\n").into_response(),
    };
    with_headers(response)
}

/// Browsers say where a form comes from. Source: <https://www.w3.org/TR/fetch-metadata/>.
fn is_of_own_page(headers: &HeaderMap, scheme: &str) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_own_site = text("sec-fetch-site").is_none_or(|site| site == "same-origin");
    let is_own_origin = text("origin").is_none_or(|origin| {
        let host = origin
            .strip_prefix(scheme)
            .and_then(|rest| rest.strip_prefix("://"));
        host.is_some() && host == text("host")
    });
    is_own_site && is_own_origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        pairs.collect()
    }

    #[test]
    fn forms_of_other_sites_are_refused() {
        let host = ("host", "localhost:8080");
        for good in [
            headers(&[host]),
            headers(&[
                host,
                ("origin", "http://localhost:8080"),
                ("sec-fetch-site", "same-origin"),
            ]),
        ] {
            assert!(is_of_own_page(&good, "http"), "{good:?}");
        }
        for bad in [
            headers(&[host, ("origin", "https://evil.example")]),
            headers(&[host, ("origin", "null")]),
            headers(&[host, ("origin", "https://localhost:8080")]),
            headers(&[host, ("origin", "http://localhost:9090")]),
            headers(&[host, ("sec-fetch-site", "cross-site")]),
            headers(&[host, ("sec-fetch-site", "same-site")]),
        ] {
            assert!(!is_of_own_page(&bad, "http"), "{bad:?}");
        }
    }
}
