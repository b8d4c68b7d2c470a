//! Reloads: one at a time, while the daemon answers. Who asks for one while another runs has an own, with all others that came
//! meanwhile: the file may have changed since it was read.

use std::{cell::RefCell, rc::Rc};

use tokio::{
    sync::{Semaphore, oneshot},
    task::{spawn_blocking, spawn_local},
};

use crate::{
    daemon::{policies::Applied, state::Daemon},
    report::human::error_chain,
};

/// What it did, or why nothing changed.
pub(super) type Outcome = Result<Applied, String>;

/// Those who wait for a reload.
pub(super) struct Reloads {
    /// Whoever reads a policy file holds this: two that do so at once would take the memory of both.
    file: Rc<Semaphore>,
    waiting: RefCell<Vec<oneshot::Sender<Outcome>>>,
    running: RefCell<bool>,
}

impl Reloads {
    pub(super) fn new(file: Rc<Semaphore>) -> Self {
        Self { file, waiting: RefCell::default(), running: RefCell::default() }
    }

    /// Applies the policy file as it is now, or later. What waits for the result does not keep it from running.
    pub(super) fn ask(self: &Rc<Self>, daemon: &Rc<RefCell<Daemon>>) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push(sender);
        if !self.running.replace(true) {
            spawn_local(Rc::clone(self).run(Rc::clone(daemon)));
        }
        receiver
    }

    async fn run(self: Rc<Self>, daemon: Rc<RefCell<Daemon>>) {
        loop {
            if self.waiting.borrow().is_empty() {
                self.running.replace(false);
                return;
            }
            // It is never closed.
            let _one = self.file.acquire().await;
            let waiting = self.waiting.take();
            let task = daemon.borrow().begin_reload();
            let outcome = match spawn_blocking(move || task.run()).await {
                // Success and failure are logged there.
                Ok(prepared) => daemon.borrow_mut().end_reload(prepared).map_err(|error| error_chain(&error)),
                Err(error) => Err(format!("the reload broke off: {error}")),
            };
            for asked in waiting {
                // Who went away meanwhile finds it in the log.
                let _ = asked.send(outcome.clone());
            }
        }
    }
}
