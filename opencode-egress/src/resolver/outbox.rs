//! What the daemon is to be told. Nothing here waits: what finds no room is counted.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

use crate::control::learned::{Counts, FromResolver};

/// How long an answer waits for its addresses to be learned.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many refused questions of an instance wait to be told.
const MOST_REFUSED: usize = 64;

/// What is to be told of one instance.
#[derive(Debug, Default)]
pub(super) struct Tally {
    refused: RefCell<VecDeque<FromResolver>>,
    counts: Cell<Counts>,
}

impl Tally {
    /// Counts something.
    pub(super) fn count(&self, count: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        count(&mut counts);
        self.counts.set(counts);
    }
}

/// What is to be told, in the order of its urgency.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    learns: RefCell<VecDeque<FromResolver>>,
    /// Those with refused questions, each once: they take turns.
    refusing: RefCell<VecDeque<Rc<Tally>>>,
    counting: RefCell<VecDeque<Counts>>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Vec<IpAddr>>>>,
    last_id: Cell<u64>,
    connected: Cell<bool>,
    changed: Notify,
}

/// The daemon did not say which addresses may be told.
#[derive(Debug)]
pub(super) struct NotLearned;

impl Outbox {
    /// Whether there is a daemon to tell.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.get()
    }

    /// A daemon is there, or none any more. Nobody waits for one that is gone.
    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.set(connected);
        self.learns.borrow_mut().clear();
        self.waiting.borrow_mut().clear();
    }

    /// Has the daemon learn an answer's addresses, for whoever asked from this source. Returns those that may be told.
    pub(super) async fn learn(
        &self,
        instance: u32,
        name: String,
        addresses: Vec<IpAddr>,
        ttl: u32,
        source: SocketAddr,
    ) -> Result<Vec<IpAddr>, NotLearned> {
        if !self.is_connected() {
            return Err(NotLearned);
        }
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(id, sender);
        let learn = FromResolver::Learn { id, instance, name, addresses, ttl, source };
        self.learns.borrow_mut().push_back(learn);
        self.changed.notify_one();
        let learned = timeout(PATIENCE, receiver).await;
        self.waiting.borrow_mut().remove(&id);
        learned.ok().and_then(Result::ok).ok_or(NotLearned)
    }

    /// The daemon has learned these.
    pub(super) fn learned(&self, id: u64, addresses: Vec<IpAddr>) {
        if let Some(sender) = self.waiting.borrow_mut().remove(&id) {
            // Whoever waited may have given up in this moment.
            let _ = sender.send(addresses);
        }
    }

    /// Tells of a refused question, if there is room.
    pub(super) fn refused(&self, tally: &Rc<Tally>, refused: impl FnOnce() -> FromResolver) {
        let mut queue = tally.refused.borrow_mut();
        if queue.len() >= MOST_REFUSED {
            return tally.count(|counts| counts.lost += 1);
        }
        if queue.is_empty() {
            self.refusing.borrow_mut().push_back(Rc::clone(tally));
        }
        queue.push_back(refused());
        self.changed.notify_one();
    }

    /// Has it told what was counted of these instances since the last time.
    pub(super) fn take_counts<'a>(&self, tallies: impl Iterator<Item = (u32, &'a Tally)>) {
        let mut counting = self.counting.borrow_mut();
        // Not told yet: they go on counting.
        if !counting.is_empty() {
            return;
        }
        let taken = tallies.map(|(instance, tally)| Counts { instance, ..tally.counts.take() });
        counting.extend(
            taken.filter(|counts| *counts != Counts { instance: counts.instance, ..Counts::default() }),
        );
        drop(counting);
        self.changed.notify_one();
    }

    /// Waits for something to tell.
    pub(super) async fn next(&self) -> FromResolver {
        loop {
            if let Some(message) = self.take() {
                return message;
            }
            self.changed.notified().await;
        }
    }

    fn take(&self) -> Option<FromResolver> {
        if let Some(learn) = self.learns.borrow_mut().pop_front() {
            return Some(learn);
        }
        if let Some(counts) = self.counting.borrow_mut().pop_front() {
            return Some(FromResolver::Counts(counts));
        }
        let tally = self.refusing.borrow_mut().pop_front()?;
        let mut queue = tally.refused.borrow_mut();
        let refused = queue.pop_front();
        if !queue.is_empty() {
            self.refusing.borrow_mut().push_back(Rc::clone(&tally));
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::learned::QueryReason;

    fn refused(instance: u32) -> FromResolver {
        FromResolver::Refused {
            instance,
            name: "evil.example".into(),
            qtype: "A".into(),
            reason: QueryReason::NameNotAllowed,
            source: ([127, 0, 0, 1], 4242).into(),
        }
    }

    #[test]
    fn one_that_asks_without_end_leaves_the_others_their_turns() {
        let outbox = Outbox::default();
        let (noisy, quiet) = (Rc::new(Tally::default()), Rc::new(Tally::default()));
        for _ in 0..1000 {
            outbox.refused(&noisy, || refused(1));
        }
        outbox.refused(&quiet, || refused(2));
        let told: Vec<_> = std::iter::from_fn(|| outbox.take()).collect();
        assert_eq!(told.len(), MOST_REFUSED + 1);
        assert_eq!(told[1], refused(2));
        outbox.take_counts([(1, &*noisy), (2, &*quiet)].into_iter());
        let lost = 1000 - MOST_REFUSED as u64;
        assert_eq!(
            outbox.take(),
            Some(FromResolver::Counts(Counts { instance: 1, lost, ..Counts::default() }))
        );
        assert_eq!(outbox.take(), None, "of the quiet one nothing was counted");
    }
}
