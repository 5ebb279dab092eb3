//! What a service manager is told (sd_notify(3)). Without one, nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::model::finding::Finding;

/// Speaks to the service manager, if there is one.
pub(super) struct Notifier {
    watchdog: Option<Duration>,
    /// What was said last.
    status: String,
}

impl Notifier {
    /// That of this process.
    pub(super) fn of_this_process() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled(), status: String::new() }
    }

    /// How often it wants to hear of this process, if at all.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        // Twice in that time, so that one may come late.
        self.watchdog.map(|time| time / 2)
    }

    /// Everything that can be attached is.
    pub(super) fn ready(&self) {
        self.say(&[NotifyState::Ready]);
    }

    /// The file is read again.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.say(&[NotifyState::Reloading, now]),
            Err(_) => self.say(&[NotifyState::Reloading]),
        }
    }

    /// Relays drain.
    pub(super) fn stopping(&self) {
        self.say(&[NotifyState::Stopping]);
    }

    /// Still here.
    pub(super) fn alive(&self) {
        self.say(&[NotifyState::Watchdog]);
    }

    /// One line for `systemctl status`, when it is another one.
    pub(super) fn status(&mut self, findings: &[Finding]) {
        let text = match findings {
            [] => "everything is attached".to_owned(),
            [one] => format!("1 finding: {}: {}", one.subject, one.cause),
            [first, ..] => {
                format!("{} findings, the first: {}: {}", findings.len(), first.subject, first.cause)
            }
        };
        if text != self.status {
            self.say(&[NotifyState::Status(&text)]);
            self.status = text;
        }
    }

    fn say(&self, states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            log::warn!("failed to tell the service manager: {error}");
        }
    }
}
