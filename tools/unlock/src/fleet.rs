//! All hosts, some of them at once.

use std::{
    cell::{Cell, OnceCell},
    io,
};

use futures_util::{StreamExt, stream};
use tokio::runtime::Runtime;

use crate::{dialogue::Delivery, hosts::Host, outcome::Outcome, report::Report};
use aws_session::interrupt::unless_readable;

/// The hosts, and what is known of each.
pub struct Fleet<'a> {
    hosts: &'a [Host],
    report: &'a Report<'a>,
    states: Vec<State>,
}

#[derive(Default)]
struct State {
    is_sent: Cell<bool>,
    outcome: OnceCell<Outcome>,
}

impl<'a> Fleet<'a> {
    /// Nothing is known yet.
    pub fn new(hosts: &'a [Host], report: &'a Report<'a>) -> Self {
        let states = hosts.iter().map(|_| State::default()).collect();
        Self {
            hosts,
            report,
            states,
        }
    }

    /// Calls all hosts, `jobs` at once, and reports each. Returns false if a signal came first; then no
    /// child process is left.
    ///
    /// The error is that of a report, and costs no host its session.
    pub fn deliver(
        &self,
        runtime: &Runtime,
        delivery: &Delivery<'_>,
        jobs: usize,
    ) -> io::Result<bool> {
        let calls = async {
            let hosts = self.hosts.iter().zip(&self.states).enumerate();
            let mut calls = stream::iter(hosts)
                .map(|(index, (host, state))| self.deliver_to(delivery, index, host, state))
                .buffer_unordered(jobs);
            let mut reported = Ok(());
            while let Some(next) = calls.next().await {
                reported = reported.and(next);
            }
            reported
        };
        let interrupt = delivery.signals.descriptor();
        let ended = runtime.block_on(unless_readable(interrupt, calls));
        ended.map_or(Ok(false), |reported| reported.map(|()| true))
    }

    async fn deliver_to(
        &self,
        delivery: &Delivery<'_>,
        index: usize,
        host: &Host,
        state: &State,
    ) -> io::Result<()> {
        self.report.begin(index);
        let outcome = delivery.deliver(host, &state.is_sent).await;
        let outcome = state.outcome.get_or_init(|| outcome);
        self.report.end(index, outcome)
    }

    /// Reports the hosts that a signal has cut off, and returns what became of each.
    pub fn finish(&self) -> io::Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(self.states.len());
        for (index, state) in self.states.iter().enumerate() {
            let outcome = match state.outcome.get() {
                Some(outcome) => outcome.clone(),
                None => {
                    let outcome = Outcome::of_interrupted(state.is_sent.get());
                    self.report.end(index, &outcome)?;
                    outcome
                }
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}
