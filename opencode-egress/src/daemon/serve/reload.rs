//! Reloads: one at a time, while the daemon answers. Who asks for one while another runs has an own, with all others that came
//! meanwhile: the file may have changed since it was read.

use std::{cell::RefCell, rc::Rc};

use tokio::{
    sync::oneshot,
    task::{spawn_blocking, spawn_local},
};

use crate::{daemon::state::Daemon, report::human::error_chain};

/// What changed, or why nothing did.
pub(super) type Outcome = Result<Vec<String>, String>;

/// Those who wait for a reload.
#[derive(Default)]
pub(super) struct Reloads {
    waiting: RefCell<Vec<oneshot::Sender<Outcome>>>,
    running: RefCell<bool>,
}

impl Reloads {
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
            let waiting = self.waiting.take();
            if waiting.is_empty() {
                self.running.replace(false);
                return;
            }
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
