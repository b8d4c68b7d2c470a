//! What is tried on the machine, a file a subject. The demo tells the main job to a reader; the tests run all of it. A
//! step that does not show what it says fails with what was seen instead. One that cannot show a part of it on this machine
//! tells `SKIPPED: ` and why, which is counted.

mod connections;
mod keeping;
mod lifecycle;
mod load;
mod logging;
mod loopback;
mod main_job;
mod metrics;
mod names;
mod outlived;
mod places;
mod policy_file;
mod refusals;
mod starts;
mod steady;
mod step;
mod top;
mod waiting;
mod why;

pub(crate) use main_job::MAIN_JOB;
pub(crate) use names::{long_flow, race_of_names};
pub(crate) use steady::CLOCK;
pub(crate) use step::{
    A, B, POLICY, Scenario, TALK, Tell, daemon_log, get, health_request, healthy, pinned, status,
};

/// All of them, in the order in which they run on one machine.
pub(crate) fn all() -> impl Iterator<Item = &'static Scenario> {
    let others = [
        refusals::REFUSALS,
        why::WHY,
        top::TOP,
        steady::STEADY,
        policy_file::POLICY_FILE,
        connections::CONNECTIONS,
        lifecycle::LIFECYCLE,
        keeping::KEEPING,
        metrics::METRICS,
        waiting::WAITING,
        logging::LOGGING,
        outlived::OUTLIVED,
        loopback::LOOPBACK,
        starts::STARTS,
        names::NAMES,
        names::KEPT,
        names::LEARN,
        names::CHANGED,
        names::HOSTILE,
        names::LEASES,
        names::TLS,
        names::RACE,
        places::PLACES,
    ];
    // Floods come last: of what they lost `status` speaks for a while.
    std::iter::once(MAIN_JOB).chain(others).chain([load::LOAD, top::FLOOD]).flatten()
}
