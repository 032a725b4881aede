//! From a request to its answer: faults first, then the call, the log, and the answer.

use std::time::Duration;

use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use uuid::Uuid;

use crate::authentication::authenticate;
use crate::caller::Caller;
use crate::error::ApiError;
use crate::fault::{self, FaultKind, Plan};
use crate::kms;
use crate::operation::{Operation, Request};
use crate::reply::{self, Answer};
use crate::service::Service;
use crate::state::State;
use crate::store::{Store, StoreError};
use crate::sts;
use crate::trail::{self, Event};

/// The error code that the call log has for a fault that is no answer of the service.
const FAULT_CODE: &str = "LocalAwsFault";

/// What every call needs.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// The state.
    pub store: Store,
    /// How long new sessions last whatever was asked for; `None` for what was asked for.
    pub session_lifetime_seconds: Option<u32>,
    /// How long EnableKey and DisableKey take to have an effect.
    pub key_state_delay: Duration,
    /// The role of the machine that clients run on; `None` for a machine outside AWS.
    pub machine_role: Option<String>,
}

/// What comes back to the client.
pub enum Ending {
    /// A response.
    Response(Response<Full<Bytes>>),
    /// A reset of the connection.
    Reset,
    /// Nothing, for as long as the client stays.
    Silence,
}

/// A call that was made.
struct Made {
    answer: Answer,
    caller: Option<Caller>,
    key_arns: Vec<String>,
}

impl Exchange {
    /// Answers `request`. The call is in the log before this returns.
    pub async fn answer(&self, request: Request) -> Ending {
        let operation = Operation::of(&request);
        let name = operation.name.clone();
        let plan = self.blocking(move |exchange| {
            exchange
                .store
                .transaction(|state| fault::take(&mut state.faults, &name))
        });
        let plan = match plan.await {
            None => return Ending::Reset,
            Some(Err(error)) => return failed(&operation, error),
            Some(Ok(plan)) => plan,
        };
        tokio::time::sleep(Duration::from_millis(plan.delay_milliseconds)).await;
        let ending = self.blocking(move |exchange| exchange.call(&request, &operation, plan));
        ending.await.unwrap_or(Ending::Reset)
    }

    /// Runs `work`, which may wait for the disk and for locks, where that holds up no other call.
    /// `None` if it panicked, which the panic itself has told on standard error.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let exchange = self.clone();
        tokio::task::spawn_blocking(move || work(&exchange))
            .await
            .ok()
    }

    fn call(&self, request: &Request, operation: &Operation, plan: Plan) -> Ending {
        let request_id = Uuid::new_v4().to_string();
        let made = self.store.transaction(|state| {
            let made = self.make(state, request, operation, plan.instead);
            let time = state.now();
            let event = Event {
                operation,
                caller: made.caller.as_ref(),
                source_ip: request.source_ip,
                user_agent: request.header("user-agent"),
                error: logged_error(operation, &made.answer, plan.instead),
                key_arns: &made.key_arns,
                time,
                request_id: &request_id,
            };
            (trail::line(state, &event), made.answer, time)
        });
        let logged = made.and_then(|(line, answer, time)| {
            self.store.append(trail::FILE, line.as_bytes())?;
            Ok((answer, time))
        });
        match (logged, plan.instead) {
            (Err(error), _) => failed(operation, error),
            (Ok(_), Some(FaultKind::Reset)) => Ending::Reset,
            (Ok(_), Some(FaultKind::Silence)) => Ending::Silence,
            (Ok((answer, time)), _) => {
                Ending::Response(reply::render(operation, &answer, &request_id, time))
            }
        }
    }

    /// A fault takes the operation's place: nothing is done, and no code is spent.
    fn make(
        &self,
        state: &mut State,
        request: &Request,
        operation: &Operation,
        instead: Option<FaultKind>,
    ) -> Made {
        let caller = authenticate(state, request, operation.service);
        let mut key_arns = Vec::new();
        let answer = match (instead, &caller) {
            (Some(kind), _) => fault_answer(kind, operation),
            // Its caller has no key yet.
            (None, _) if operation.name == sts::UNSIGNED => Answer::Outcome(sts::call_unsigned(
                state,
                operation,
                self.session_lifetime_seconds,
            )),
            (None, Err(error)) => Answer::Outcome(Err(error.clone())),
            (None, Ok(caller)) => Answer::Outcome(match operation.service {
                Service::Sts => sts::call(state, caller, operation, self.session_lifetime_seconds),
                Service::Kms => kms::call(
                    state,
                    caller,
                    operation,
                    self.key_state_delay,
                    &mut key_arns,
                ),
            }),
        };
        Made {
            answer,
            caller: caller.ok(),
            key_arns,
        }
    }
}

fn fault_answer(kind: FaultKind, operation: &Operation) -> Answer {
    match (kind, fault::error(kind, operation)) {
        (_, Some(error)) => Answer::Outcome(Err(error)),
        (FaultKind::Garbage, _) => Answer::CaptivePortal,
        (FaultKind::NoCredentials, _) => Answer::Outcome(Ok(serde_json::json!({}))),
        _ => Answer::Empty,
    }
}

fn logged_error<'a>(
    operation: &Operation,
    answer: &'a Answer,
    instead: Option<FaultKind>,
) -> Option<(&'static str, &'a str)> {
    match (answer, instead) {
        (Answer::Outcome(Err(error)), _) => Some((
            error.kind.code_and_status(operation.service).0,
            error.logged_message(),
        )),
        (_, Some(kind)) => Some((FAULT_CODE, kind.name())),
        _ => None,
    }
}

/// The answer when the state cannot be read or written.
fn failed(operation: &Operation, error: StoreError) -> Ending {
    let answer = Answer::Outcome(Err(ApiError::internal(error)));
    let request_id = Uuid::new_v4().to_string();
    Ending::Response(reply::render(
        operation,
        &answer,
        &request_id,
        jiff::Timestamp::now(),
    ))
}
