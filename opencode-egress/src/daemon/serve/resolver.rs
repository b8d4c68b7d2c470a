//! The resolver's connection: what it says is taken note of in the order in which it says it, and answered.

use std::{
    io,
    os::fd::AsFd as _,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc::Receiver,
};
use tracing::{info, warn};

use super::clients::Server;
use crate::{
    cgroups::unit_of,
    control::{
        caller::Caller,
        learned::{FromResolver, MAX_FROM_RESOLVER, ToResolver},
        lines::{Lines, send},
    },
    daemon::names::Told,
    report::human::error_chain,
};

/// How long after one that could not be taken the next is tried.
const PAUSE: Duration = Duration::from_millis(100);
/// The unit that is believed to be the resolver.
const UNIT: &str = "opencode-egress-resolver.service";

/// Takes resolvers for as long as the daemon runs.
pub(super) async fn take_resolvers(server: Rc<Server>, listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("cannot take a resolver: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let caller = Caller::of(&stream, &server.daemon.borrow().confinement.hierarchy);
        match caller.map_err(|error| error.to_string()).and_then(|caller| refusal(&server, &caller)) {
            Ok(()) => {
                let told = server.daemon.borrow_mut().names.connect();
                info!("a resolver is connected");
                drop(tokio::task::spawn_local(serve(Rc::clone(&server), stream, told)));
            }
            Err(why) => warn!("refused a process that would be the resolver: {why}"),
        }
    }
}

/// Only the resolver's own unit may be it; and root, by hand, unless that is in a confined unit.
fn refusal(server: &Server, caller: &Caller) -> Result<(), String> {
    let path = caller.cgroup.as_ref().map_err(|error| error_chain(error))?;
    let unit = unit_of(path).map(|(unit, _)| unit);
    match &unit {
        Some(unit) if unit.as_str() == UNIT => Ok(()),
        _ if caller.uid == 0 && !server.daemon.borrow().is_confined(caller) => Ok(()),
        Some(unit) => Err(format!("it is of {unit}, and only {UNIT} is believed")),
        None => Err(format!("it is of no unit, and only {UNIT} is believed")),
    }
}

async fn serve(server: Rc<Server>, stream: UnixStream, told: Receiver<Told>) {
    let said = tokio::select! {
        said = listen(&server, &stream) => said,
        said = tell(&stream, told) => said,
    };
    match said {
        Ok(()) => info!("the resolver is gone; questions wait until it is back"),
        Err(error) => warn!("the resolver's connection broke off: {error}"),
    }
}

async fn tell(stream: &UnixStream, mut told: Receiver<Told>) -> io::Result<()> {
    // Ends when another resolver is there, or this one does not read.
    while let Some(Told { message, sockets }) = told.recv().await {
        let line = serde_json::to_vec(&message)?;
        let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
        send(stream, &line, &sockets).await?;
    }
    Ok(())
}

async fn listen(server: &Rc<Server>, stream: &UnixStream) -> io::Result<()> {
    let mut lines = Lines::new(MAX_FROM_RESOLVER);
    while let Some(line) = lines.next(stream).await? {
        let message: FromResolver = serde_json::from_slice(&line.bytes)?;
        take(server, message);
        // Others have a turn after each.
        tokio::task::yield_now().await;
    }
    Ok(())
}

fn take(server: &Server, message: FromResolver) {
    let mut daemon = server.daemon.borrow_mut();
    match message {
        FromResolver::Learn { id, instance, name, addresses, ttl, source } => {
            let told = daemon.learn(instance, &name, &addresses, ttl, source);
            daemon.names.resolvers.tell_alone(ToResolver::Learned { id, addresses: told });
        }
        FromResolver::Refused { instance, name, qtype, reason, source } => {
            let line = daemon.refuse_question(instance, (&name, &qtype, reason), source, Instant::now());
            drop(daemon);
            server.publish(line.into_iter().collect());
        }
        FromResolver::Counts(counts) => daemon.count_questions(&counts),
    }
}
