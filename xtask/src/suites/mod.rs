//! Real test suites and servers that talk to themselves over loopback, under a policy that lists nothing: `suites` by `exec`, and those
//! that take little on the machine, in a unit.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    daemon,
    process::{checked, ensure as ensure_programs, root, text},
};

/// A suite.
///
/// In its commands stand `{BUILT}` for a directory for what is installed and built, `{PROGRAMS}` for that of `programs/`.
pub(crate) struct Suite {
    pub(crate) title: &'static str,
    /// Programs that it takes, each with the Debian package that has it.
    install: &'static [(&'static str, &'static str)],
    /// What it takes besides, done unconfined beforehand.
    prepare: &'static str,
    /// Ends well, in a directory of its own that is its home, where everything works.
    command: &'static str,
    /// It takes much time, or much to install.
    heavy: bool,
}

pub(crate) const SUITES: &[Suite] = &[
    Suite {
        title: "Python: pytest with pytest-httpserver",
        install: &[("/usr/bin/pip3", "python3-pip")],
        prepare: "test -e {BUILT}/python/pytest_httpserver || /usr/bin/pip3 install --quiet --target {BUILT}/python pytest==8.4.2 pytest-httpserver==1.1.3",
        command: "PYTHONPATH={BUILT}/python /usr/bin/python3 -m pytest -q -p no:cacheprovider {PROGRAMS}/test_server.py",
        heavy: false,
    },
    Suite {
        title: "Node.js: http with supertest",
        install: &[("node", "nodejs"), ("npm", "npm")],
        prepare: "test -e {BUILT}/node/node_modules/supertest || npm install --silent --no-save --prefix {BUILT}/node supertest@7.1.4",
        command: "NODE_PATH={BUILT}/node/node_modules node --test {PROGRAMS}/server.test.js",
        heavy: false,
    },
    Suite {
        title: "a language server over TCP: python-lsp-server",
        install: &[("/usr/bin/pip3", "python3-pip")],
        prepare: "test -e {BUILT}/lsp/pylsp || /usr/bin/pip3 install --quiet --target {BUILT}/lsp python-lsp-server==1.13.1",
        command: "PYTHONPATH={BUILT}/lsp /usr/bin/python3 {PROGRAMS}/lsp.py",
        heavy: false,
    },
    Suite {
        title: "Go: httptest",
        install: &[("go", "golang-go")],
        prepare: "",
        command: "cp {PROGRAMS}/server_test.go . && GOCACHE={BUILT}/go-cache GO111MODULE=off go test server_test.go",
        heavy: true,
    },
    Suite {
        title: "Gradle: a build by its daemon",
        install: &[("gradle", "gradle"), ("javac", "default-jdk-headless")],
        prepare: "",
        command: "mkdir build && cp {PROGRAMS}/build.gradle build && gradle -q --daemon --offline -g $HOME/gradle -p build hello; \
                  status=$?; gradle -g $HOME/gradle --stop > /dev/null; exit $status",
        heavy: true,
    },
];

/// Which suites.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Those whose title has this in it; all when none is given
    names: Vec<String>,
}

/// What the suites have beside them: a service of the host's, and a neighbour's server.
const OTHERS: &str = "/usr/bin/python3 {PROGRAMS}/others.py";

impl Suite {
    /// Those that take little.
    pub(crate) fn light() -> impl Iterator<Item = &'static Self> {
        SUITES.iter().filter(|suite| !suite.heavy)
    }

    /// Installs what it takes.
    pub(crate) fn prepare(&self) -> Result<()> {
        ensure_programs(self.title, self.install)?;
        fs::create_dir_all(built())?;
        let mut shell = Command::new("sh");
        shell.args(["-c", &filled(self.prepare)]);
        checked(shell)
    }

    /// The command, for a shell.
    pub(crate) fn command(&self) -> String {
        filled(self.command)
    }
}

/// The command that tries to reach these ports of others on loopback, and ends well when each is refused with EPERM.
pub(crate) fn others(ports: &[u16]) -> String {
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    format!("{} {}", filled(OTHERS), ports.join(" "))
}

fn built() -> PathBuf {
    root().join("target/suites/built")
}

fn filled(command: &str) -> String {
    command
        .replace("{BUILT}", &built().display().to_string())
        .replace("{PROGRAMS}", &root().join("xtask/src/suites/programs").display().to_string())
}

/// Runs them by `exec`: with own loopback each ends well and nothing of it is denied; without, it does not; and beside it others' ports
/// are closed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = |suite: &&Suite| {
        let title = suite.title.to_lowercase();
        args.names.is_empty() || args.names.iter().any(|name| title.contains(&name.to_lowercase()))
    };
    let suites: Vec<_> = SUITES.iter().filter(wanted).collect();
    if suites.is_empty() {
        let titles: Vec<_> = SUITES.iter().map(|suite| suite.title).collect();
        bail!("no suite is called so; there are: {}", titles.join("; "));
    }
    let egress = daemon::build()?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for suite in &suites {
        if let Err(why) = suite.prepare() {
            println!("SKIPPED {}: {why:#}", suite.title);
            skipped += 1;
        } else if let Err(error) = try_out(&egress, suite) {
            println!("FAILED {}: {error:#}", suite.title);
            failed += 1;
        } else {
            println!("ok     {}", suite.title);
            passed += 1;
        }
    }
    println!("suites: {passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 { bail!("{failed} of {} suites failed", suites.len()) } else { Ok(()) }
}

fn try_out(egress: &Path, suite: &Suite) -> Result<()> {
    let host = TcpListener::bind("127.0.0.1:0")?;
    let neighbour = Neighbour::start(egress)?;
    let others = others(&[host.local_addr()?.port(), neighbour.port]);
    let both = format!("( {} ) && {others}", suite.command());
    let own = exec(egress, &[], &both)?;
    ensure!(own.status.success(), "with own loopback it fails:\n{}", text(&own));
    let denied = text(&own).lines().filter(|line| line.contains("reason=")).count();
    let tried = [host.local_addr()?.port(), neighbour.port].map(|port| format!("dport={port} "));
    let of_others = text(&own).lines().filter(|line| tried.iter().any(|port| line.contains(port))).count();
    ensure!(denied == of_others && of_others >= 2, "more is denied than others' ports:\n{}", text(&own));
    let listed = exec(egress, &["--loopback", "listed"], &suite.command())?;
    ensure!(!listed.status.success(), "without own loopback it works too, so it shows nothing");
    Ok(())
}

/// Runs a command under an empty list, in a home of its own.
fn exec(egress: &Path, arguments: &[&str], command: &str) -> Result<Output> {
    let home = root().join("target/suites/home");
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(&home)?;
    let mut confined = Command::new("timeout");
    confined.arg("300").arg(egress).arg("exec").args(arguments).args(["--", "sh", "-c", command]);
    confined.current_dir(&home).env("HOME", &home);
    confined.output().context("cannot run timeout")
}

/// Another instance, with a server of its own.
struct Neighbour {
    process: Child,
    port: u16,
}

impl Neighbour {
    fn start(egress: &Path) -> Result<Self> {
        const SERVER: &str = "import socket, sys
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen()
print(server.getsockname()[1], flush=True)
sys.stdin.read()";
        let mut command = Command::new(egress);
        command
            .args(["exec", "--", "/usr/bin/python3", "-c", SERVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = command.spawn().context("cannot start a neighbour")?;
        let mut line = String::new();
        let stdout = process.stdout.take().context("its output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let port = line.trim().parse().context("a neighbour's port")?;
        Ok(Self { process, port })
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // Its server ends with its input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
