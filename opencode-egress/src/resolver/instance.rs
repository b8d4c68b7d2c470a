//! An instance's questions, from the list to the answer.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};
use tokio::{
    sync::watch,
    task::spawn_local,
    time::{Duration, Instant},
};
use tracing::debug;

use crate::{
    control::learned::{FromResolver, QueryReason},
    kernel::maps::boottime,
    report::human::error_chain,
    resolver::{
        answer::{Answer, Reason, Transport},
        cache::{Cache, Key, Known},
        names::{Listed, Names},
        outbox::{Outbox, Tally},
        question::{Client, Question, Unreadable, escaped, type_text},
        reply::Reply,
        upstream::Upstream,
    },
};

/// How many questions of an instance wait for an answer, and how many different ones are asked at a time.
const MOST_WAITING: usize = 1024;
const MOST_ASKED: usize = 256;

/// What all instances share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Whom to ask.
    pub(super) upstream: Upstream,
    /// Whom to tell.
    pub(super) outbox: Outbox,
}

/// An instance.
pub(super) struct Instance {
    number: u32,
    shared: Rc<Shared>,
    names: RefCell<Names>,
    /// Until which second since boot it is in audit mode.
    audit_until: Cell<u64>,
    cache: RefCell<Cache>,
    /// What is being asked.
    asked: RefCell<HashMap<Key, watch::Receiver<Option<Outcome>>>>,
    waiting: Cell<usize>,
    tally: Rc<Tally>,
}

/// What became of a question that was asked.
#[derive(Clone, Debug)]
enum Outcome {
    Known {
        known: Known,
        ttl: u32,
    },
    /// As it came: in audit mode, for what is not asked otherwise.
    Records {
        code: ResponseCode,
        records: Rc<[Record]>,
    },
    /// The daemon may tell none of the addresses.
    Forbidden,
    /// It is on the list no more.
    NotListed,
    Failed(ResponseCode, Reason),
}

/// What is to be done about a question.
pub(super) enum Step {
    /// Answer this.
    Answer(Vec<u8>),
    /// Wait for [`Waiting::wait`].
    Wait(Waiting),
    /// Nothing.
    Nothing,
}

/// A question that waits for its answer.
pub(super) struct Waiting {
    instance: Rc<Instance>,
    client: Client,
    most: u16,
    key: Key,
    outcome: watch::Receiver<Option<Outcome>>,
    /// What was being asked of the other family's addresses when this was.
    sibling: Option<watch::Receiver<Option<Outcome>>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.instance.waiting.set(self.instance.waiting.get() - 1);
    }
}

impl Instance {
    /// One whose names are yet to be told.
    pub(super) fn new(number: u32, shared: Rc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            number,
            shared,
            names: RefCell::default(),
            audit_until: Cell::new(0),
            cache: RefCell::new(Cache::new()),
            asked: RefCell::default(),
            waiting: Cell::new(0),
            tally: Rc::default(),
        })
    }

    /// What is to be told of it.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many questions wait for an answer.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// Has it have these names, and audit mode until a second since boot. What is remembered stays where it was listed, so learned, and is.
    pub(super) fn set_names(&self, names: Names, audit_until: u64) {
        let before = self.names.replace(names);
        let (names, now) = (self.names.borrow(), boottime());
        let stays = |name: &str| before.find(name, now).is_some() && names.find(name, now).is_some();
        self.cache.borrow_mut().retain(stays);
        self.audit_until.set(audit_until);
    }

    /// The list and the mode as they are now: a lease can have ended since the daemon told of it, with none there to say so.
    fn find(&self, name: &str) -> Option<Listed> {
        self.names.borrow().find(name, boottime())
    }

    fn is_in_audit_mode(&self) -> bool {
        boottime() < self.audit_until.get()
    }

    /// Forgets all answers: another daemon may not have learned them.
    pub(super) fn forget_answers(&self) {
        self.cache.borrow_mut().retain(|_| false);
    }

    /// Answers what can be answered at once.
    pub(super) fn take(self: &Rc<Self>, bytes: &[u8], source: SocketAddr, transport: Transport) -> Step {
        let (client, code) = match Question::read(bytes) {
            Ok(question) => return self.judge(question, source, transport),
            Err(Unreadable::Nothing) => return Step::Nothing,
            Err(Unreadable::Error(client, code)) => (client, code),
        };
        self.tally.count(|counts| {
            counts.questions += 1;
            counts.refused += 1;
        });
        let (name, qtype) = client
            .query
            .as_ref()
            .map_or_else(Default::default, |query| (escaped(&query.name), type_text(query.query_type)));
        self.tell(name, qtype, QueryReason::Unreadable, source);
        written(&Answer { code, ..Answer::default() }, &client, transport.most(&client))
    }

    fn judge(self: &Rc<Self>, question: Question, source: SocketAddr, transport: Transport) -> Step {
        let Question { client, name, qtype, text } = question;
        let listed = text.as_deref().and_then(|text| self.find(text));
        let audit = self.is_in_audit_mode();
        let of_addresses = matches!(qtype, RecordType::A | RecordType::AAAA);
        let refusal = match (listed, qtype) {
            (None, _) => Some(QueryReason::NameNotAllowed),
            (Some(_), RecordType::A | RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB) => None,
            (Some(_), _) => Some(QueryReason::TypeNotAllowed),
        };
        let name_text = text.unwrap_or_else(|| escaped(&name));
        if let Some(reason) = refusal {
            self.tell(name_text.clone(), type_text(qtype), reason, source);
        }
        self.tally.count(|counts| counts.questions += 1);
        let most = transport.most(&client);
        let refused = |answer: Answer<'_>| {
            self.tally.count(|counts| counts.refused += 1);
            written(&answer, &client, most)
        };
        match refusal {
            Some(QueryReason::NameNotAllowed) if !audit => {
                return refused(Answer::no_such_name(Reason::NotListed));
            }
            Some(_) if !audit => return refused(Answer::nothing(Some(Reason::OnlyAddresses))),
            // An address besides would come without having been learned, and a key would hide the server's name.
            None if !of_addresses => {
                self.tally.count(|counts| counts.answered += 1);
                return written(&Answer::nothing(None), &client, most);
            }
            _ => {}
        }
        let key = Key { name: name_text, qtype };
        if let Some((known, ttl)) = self.cache.borrow_mut().get(&key, Instant::now()) {
            self.tally.count(|counts| counts.cached += 1);
            return written(&known.answer(ttl), &client, most);
        }
        let sibling = key.sibling().and_then(|key| self.asked.borrow().get(&key).cloned());
        match self.ask(key.clone(), name, listed, source) {
            Ok(outcome) => {
                self.waiting.set(self.waiting.get() + 1);
                Step::Wait(Waiting { instance: Rc::clone(self), client, most, key, outcome, sibling })
            }
            Err(reason) => {
                self.tally.count(|counts| counts.failed += 1);
                written(&Answer::failed(reason), &client, most)
            }
        }
    }

    fn tell(&self, name: String, qtype: String, reason: QueryReason, source: SocketAddr) {
        let refused = || FromResolver::Refused { instance: self.number, name, qtype, reason, source };
        self.shared.outbox.refused(&self.tally, refused);
    }

    /// Asks, or joins those who wait for the same.
    fn ask(
        self: &Rc<Self>,
        key: Key,
        name: Name,
        listed: Option<Listed>,
        source: SocketAddr,
    ) -> Result<watch::Receiver<Option<Outcome>>, Reason> {
        // What nobody could learn need not be asked.
        if listed.is_some() && !self.shared.outbox.is_connected() {
            return Err(Reason::NoDaemon);
        }
        if self.waiting.get() >= MOST_WAITING {
            return Err(Reason::Busy);
        }
        let mut asked = self.asked.borrow_mut();
        if let Some(outcome) = asked.get(&key) {
            return Ok(outcome.clone());
        }
        if asked.len() >= MOST_ASKED {
            return Err(Reason::Busy);
        }
        let (sender, receiver) = watch::channel(None);
        asked.insert(key.clone(), receiver.clone());
        let instance = Rc::clone(self);
        // Not of those who wait: one of them may go away.
        spawn_local(async move {
            let outcome = instance.find_out(&key, &name, source).await;
            instance.asked.borrow_mut().remove(&key);
            // Those who waited may all be gone.
            let _ = sender.send(Some(outcome));
        });
        Ok(receiver)
    }

    async fn find_out(&self, key: &Key, name: &Name, source: SocketAddr) -> Outcome {
        let no_server = |error| {
            debug!("no answer for {}: {}", key.name, error_chain(&error));
            Outcome::Failed(ResponseCode::ServFail, Reason::NoServer)
        };
        if !matches!(key.qtype, RecordType::A | RecordType::AAAA) {
            return match self.shared.upstream.ask(name, key.qtype).await {
                Ok(message) => {
                    Outcome::Records { code: message.metadata.response_code, records: message.answers.into() }
                }
                Err(error) => no_server(error),
            };
        }
        let reply = self.shared.upstream.addresses(name, key.qtype).await;
        let begin = Instant::now();
        // The list may be another one by now.
        let is_listed = || self.find(&key.name).is_some();
        let is_over = || !is_listed() && !self.is_in_audit_mode();
        let (known, ttl) = match reply {
            Err(error) => return no_server(error),
            Ok(_) if is_over() => return Outcome::NotListed,
            Ok(Reply::Addresses { addresses, ttl }) if is_listed() => {
                let learned = self.learn(key, addresses, ttl, source).await;
                match learned {
                    Ok(_) if is_over() => return Outcome::NotListed,
                    Ok(addresses) if addresses.is_empty() => return Outcome::Forbidden,
                    Ok(addresses) => (Known::Addresses(addresses.into()), ttl),
                    Err(reason) => return Outcome::Failed(ResponseCode::NXDomain, reason),
                }
            }
            Ok(Reply::Addresses { addresses, ttl }) => {
                // In audit mode. The daemon is told for its lines alone, so one that is gone is no reason to refuse.
                let addresses = self.learn(key, addresses.clone(), ttl, source).await.unwrap_or(addresses);
                (Known::Addresses(addresses.into()), ttl)
            }
            Ok(Reply::Nothing { exists, ttl }) => (Known::Nothing { exists }, ttl),
            // The aliases were followed.
            Ok(Reply::Alias { .. }) => return Outcome::Failed(ResponseCode::ServFail, Reason::NoServer),
        };
        if ttl > 0 {
            let until = begin + Duration::from_secs(ttl.into());
            self.cache.borrow_mut().put(key.clone(), known.clone(), until);
        }
        Outcome::Known { known, ttl }
    }

    /// Has them learned, and keeps those that may be told.
    async fn learn(
        &self,
        key: &Key,
        mut addresses: Vec<IpAddr>,
        ttl: u32,
        source: SocketAddr,
    ) -> Result<Vec<IpAddr>, Reason> {
        let learn = self.shared.outbox.learn(self.number, key.name.clone(), addresses.clone(), ttl, source);
        let told: BTreeSet<_> = learn.await.map_err(|_| Reason::NoDaemon)?.into_iter().collect();
        addresses.retain(|address| told.contains(address));
        Ok(addresses)
    }
}

impl Waiting {
    /// What is known of the name's addresses of the other family, once it is, where that is asked or remembered.
    async fn sibling(&mut self) -> Option<Known> {
        let key = self.key.sibling()?;
        if let Some((known, _)) = self.instance.cache.borrow_mut().get(&key, Instant::now()) {
            return Some(known);
        }
        let now = self.instance.asked.borrow().get(&key).cloned();
        let mut outcome = now.or_else(|| self.sibling.take())?;
        match ended(&mut outcome).await {
            Outcome::Known { known, .. } => Some(known),
            _ => None,
        }
    }

    /// Where no server says what addresses of one family a name has, and those of the other are known, it has none of this one, for now:
    /// some servers refuse AAAA, and musl waits for both.
    async fn without_a_family(&mut self) -> Option<Outcome> {
        match self.sibling().await? {
            Known::Addresses(_) => Some(Outcome::Known { known: Known::Nothing { exists: true }, ttl: 0 }),
            Known::Nothing { exists: false } => {
                Some(Outcome::Known { known: Known::Nothing { exists: false }, ttl: 0 })
            }
            // It may have these alone.
            Known::Nothing { exists: true } => None,
        }
    }

    /// The answer, when it is there.
    pub(super) async fn wait(mut self) -> Option<Vec<u8>> {
        let mut outcome = ended(&mut self.outcome).await;
        // The one that was asked does not wait for the other, or two that fail would wait for each other.
        if matches!(outcome, Outcome::Failed(_, Reason::NoServer))
            && let Some(other) = self.without_a_family().await
        {
            outcome = other;
        }
        let tally = &self.instance.tally;
        tally.count(|counts| match &outcome {
            Outcome::Known { .. } | Outcome::Records { .. } => counts.answered += 1,
            Outcome::Forbidden | Outcome::NotListed => counts.refused += 1,
            Outcome::Failed(..) => counts.failed += 1,
        });
        let answer = match &outcome {
            Outcome::Known { known, ttl } => known.answer(*ttl),
            Outcome::Records { code, records } => Answer { code: *code, records, ..Answer::default() },
            // Not that there is no such name: musl takes that for its addresses of the other family as well.
            Outcome::Forbidden => Answer::nothing(Some(Reason::ForbiddenAddress)),
            Outcome::NotListed => Answer::no_such_name(Reason::NotListed),
            Outcome::Failed(code, reason) => Answer::error(*code, *reason),
        };
        match written(&answer, &self.client, self.most) {
            Step::Answer(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// What became of a question, when that is known.
async fn ended(outcome: &mut watch::Receiver<Option<Outcome>>) -> Outcome {
    let ended = outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
    ended.unwrap_or(Outcome::Failed(ResponseCode::ServFail, Reason::NoServer))
}

fn written(answer: &Answer<'_>, client: &Client, most: u16) -> Step {
    match answer.write(client, most) {
        Ok(bytes) => Step::Answer(bytes),
        Err(error) => {
            debug!("an answer cannot be written: {error}");
            Step::Nothing
        }
    }
}
