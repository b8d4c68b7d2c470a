//! The socket at which confined processes ask what they may reach. Anybody may connect, and nothing is read of what they say.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tracing::warn;

use crate::{
    control::{caller::Caller, request::Reply},
    daemon::serve::clients::{Server, send},
};

/// How long after one the next is taken: whoever connects without end costs the daemon little. What waits has its turn in the order in
/// which it came.
const PACE: Duration = Duration::from_millis(1);
/// How long after one that could not be taken the next is tried.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers for as long as the daemon runs.
pub(super) async fn answer_why(server: Rc<Server>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let reply = reply(&server, &stream);
                // One that does not read is waited for in a task of its own, and not for long; of an instance's there are few, for it gets few answers.
                drop(tokio::task::spawn_local(async move { send(&mut stream, &reply).await }));
                sleep(PACE).await;
            }
            Err(error) => {
                warn!("cannot take a process that asks what it may reach: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

fn reply(server: &Server, stream: &UnixStream) -> Reply {
    let mut daemon = server.daemon.borrow_mut();
    let why = Caller::of(stream, &daemon.confinement.hierarchy).map_err(|error| error.to_string());
    let why = why.and_then(|caller| daemon.why(&caller, Instant::now()).map_err(|error| error.to_string()));
    why.map_or_else(Reply::Error, |why| Reply::Why(Box::new(why)))
}
