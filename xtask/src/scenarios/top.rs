//! `top`, in a real terminal: tmux.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};

use super::{A, POLICY, Scenario, Tell, get, status};
use crate::machine::{Machine, wait};

/// Scenarios of an operator at a terminal.
pub(super) const TOP: &[Scenario] = &[
    Scenario {
        title: "top: what was denied is chosen, explained, granted for an hour, and copied as an option, at 80 columns without colours",
        run: answers,
    },
    Scenario {
        title: "top: the terminal is as it was after a signal, and a daemon that goes is said",
        run: ends,
    },
];

/// One that many denials come to.
pub(super) const FLOOD: &[Scenario] =
    &[Scenario { title: "top: a flood of denials leaves it readable, quick and cheap", run: flood }];

/// A terminal of 80 columns and 24 lines, in which `top` runs until the end of the shell around it.
pub(super) struct Terminal<'a> {
    machine: &'a Machine,
    /// Of its own: a server that was told to end may still be there.
    socket: String,
}

impl<'a> Terminal<'a> {
    /// Runs a command there, and says how it ended.
    pub(super) fn open(machine: &'a Machine, command: &str) -> Result<Self> {
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let socket = format!("/run/top-{}.tmux", OPENED.fetch_add(1, Ordering::Relaxed));
        let terminal = Self { machine, socket };
        let shell = format!(
            "stty -g > /run/stty-before; {command}; echo ended with $?; stty -g > /run/stty-after; exec sleep 1000"
        );
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            &shell,
            ";",
            "set",
            "-g",
            "set-clipboard",
            "on",
        ])?;
        Ok(terminal)
    }

    fn tmux(&self, words: &[&str]) -> Result<String> {
        let tmux = ["env", "TERM=xterm-256color", "LC_ALL=C.UTF-8", "tmux", "-S", &self.socket];
        self.machine.succeed(&[&tmux[..], words].concat())
    }

    fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Makes it high enough for whatever needs attention.
    pub(super) fn heighten(&self) -> Result<()> {
        self.tmux(&["resize-window", "-x", "80", "-y", "60"]).map(drop)
    }

    /// Waits until a text is on the screen; returns all of it.
    pub(super) fn shows(&self, text: &str) -> Result<String> {
        let shown = wait(text, || self.screen().ok().filter(|screen| screen.contains(text)));
        shown.or_else(|error| Err(error.context(format!("the screen is:\n{}", self.screen()?))))
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

fn answers(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    ensure!(get(machine, A, "192.0.2.20:8282/top-a")?.contains("refused"), "it is denied");
    // What a key changes is shown at once, however rarely the daemon is asked.
    let terminal = Terminal::open(machine, "NO_COLOR=1 opencode-egress top --interval 3600")?;
    let screen = terminal.shows("192.0.2.20:8282 not-allowed by curl")?;
    ensure!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    ensure!(screen.contains("q leaves"), "{screen}");
    let colored = terminal.tmux(&["capture-pane", "-p", "-e"])?;
    // 39 and 49 are the terminal's own.
    let codes = (30..38).chain(40..48).chain(90..98).map(|code| format!("\u{1b}[{code}"));
    let code = codes.into_iter().find(|code| colored.contains(code));
    ensure!(code.is_none(), "{colored:?}");

    terminal.press(&["?"])?;
    terminal.shows("let it pass for an hour")?;
    terminal.press(&["Escape"])?;
    terminal.shows("Denied last")?;
    terminal.press(&["a"])?;
    terminal.shows("choose a row first, with the arrows")?;
    // It came last.
    terminal.press(&["Down"])?;
    let screen = terminal.shows("> ")?;
    ensure!(
        screen.lines().any(|line| line.starts_with("> ") && line.contains("192.0.2.20:8282")),
        "{screen}"
    );
    terminal.press(&["e"])?;
    terminal.shows("a: 192.0.2.20:8282/tcp")?;
    terminal.shows("denied")?;
    terminal.press(&["Space", "w"])?;
    let screen = terminal.shows("Who asked for 192.0.2.20:8282/tcp")?;
    ensure!(screen.contains("name      curl"), "{screen}");
    terminal.press(&["Space", "n"])?;
    terminal.shows("networkIsolation.outboundAllow = [")?;
    let option = wait("the clipboard", || terminal.tmux(&["show-buffer"]).ok())?;
    ensure!(
        option.contains("{ cidr = \"192.0.2.20/32\"; protocol = \"tcp\"; ports = [ \"8282\" ]; }"),
        "{option}"
    );

    terminal.press(&["Space", "a"])?;
    let screen = terminal.shows("rule   192.0.2.20/32:8282/tcp")?;
    ensure!(screen.contains("It opens TCP to port 8282 of 192.0.2.20/32"), "{screen}");
    terminal.press(&["x"])?;
    terminal.shows("nothing was granted")?;
    ensure!(!leases(machine)?.contains("8282"), "it was granted without a yes");
    terminal.press(&["a"])?;
    terminal.shows("y grants it")?;
    terminal.press(&["y"])?;
    terminal.shows("a: 192.0.2.20/32:8282/tcp is allowed until ")?;
    terminal.shows("a: 1 lease: 192.0.2.20/32:8282/tcp (59m")?;
    let leases = leases(machine)?;
    ensure!(leases.contains("192.0.2.20/32:8282/tcp") && leases.contains("by `top`"), "{leases}");
    // Nobody listens there: it is the second host that refuses now.
    let said = machine.opencode_shell(A, "curl -sS -m 5 http://192.0.2.20:8282/ 2>&1; true")?;
    ensure!(said.contains("Connection refused") || said.contains("Couldn't connect"), "{said}");
    let said = machine.opencode_shell(A, "opencode-egress why")?;
    ensure!(said.contains("192.0.2.20/32:8282/tcp, for "), "{said}");
    machine.succeed(&["opencode-egress", "revoke", "a", "192.0.2.20/32:8282/tcp"])?;
    terminal.press(&["q"])?;
    terminal.shows("ended with 0")?;
    Ok(())
}

fn leases(machine: &Machine) -> Result<String> {
    machine.run(&["opencode-egress", "leases", "a"])
}

/// Is denied as often as it can, each time at another port, for so many seconds; prints how often.
const DENIED: &str = "
import os, socket, sys, time
with open('/sys/fs/cgroup/system.slice/opencode-a.service/cgroup.procs', 'w') as procs:
    procs.write(str(os.getpid()))
began, count = time.monotonic(), 0
while time.monotonic() < began + 12:
    for _ in range(100):
        count += 1
        with socket.socket() as s:
            try:
                s.connect(('192.0.2.20', 1024 + count % 60000))
            except OSError:
                pass
print(count)
";

fn flood(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    let policy = machine.read(POLICY)?;
    // Every line goes to `top`.
    let mut loud: serde_json::Value = serde_json::from_str(&policy)?;
    loud["log"] = serde_json::json!({ "interval_secs": 10, "burst": 1_000_000, "per_sec": 1_000_000 });
    machine.write(POLICY, &loud.to_string())?;
    machine.succeed(&["opencode-egress", "reload"])?;
    let before = denied(machine)?;
    let shown = under_flood(machine);
    machine.write(POLICY, &policy)?;
    machine.succeed(&["opencode-egress", "reload"])?;
    shown?;
    let denials = denied(machine)? - before;
    ensure!(denials > 120_000, "{denials} in twelve seconds are no flood");
    Ok(())
}

fn denied(machine: &Machine) -> Result<u64> {
    Ok(status(machine)?["instances"]["a"]["counters"]["denied_packets"].as_u64().unwrap_or_default())
}

fn under_flood(machine: &Machine) -> Result<()> {
    let terminal = Terminal::open(machine, "opencode-egress top")?;
    terminal.shows("q leaves")?;
    // What is drawn, byte by byte.
    terminal.tmux(&["pipe-pane", "cat > /run/top-drawn"])?;
    let mut flood = machine.command(&["python3", "-c", DENIED]).spawn()?;
    let used = || -> Result<u64> {
        let said = machine.succeed(&[
            "sh",
            "-c",
            "cut -d ' ' -f 14,15 /proc/$(pgrep -n -x -f 'opencode-egress top')/stat",
        ])?;
        Ok(said.split_whitespace().filter_map(|ticks| ticks.parse::<u64>().ok()).sum())
    };
    let (began, before) = (std::time::Instant::now(), used()?);
    terminal.shows("192.0.2.20:")?;
    for _ in 0..5 {
        let pressed = std::time::Instant::now();
        terminal.press(&["?"])?;
        terminal.shows("let it pass for an hour")?;
        terminal.press(&["Space", "Down", "w"])?;
        terminal.shows("Who asked for ")?;
        terminal.press(&["Space"])?;
        terminal.shows("Denied last")?;
        ensure!(pressed.elapsed().as_secs() < 5, "keys took {:?}", pressed.elapsed());
    }
    let (passed, ticks) = (began.elapsed(), used()? - before);
    flood.wait()?;
    let drawn = machine.succeed(&["wc", "-c", "/run/top-drawn"])?;
    let drawn: u64 = drawn.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).unwrap_or(u64::MAX);
    // Ticks are hundredths of a second. A screen is 2 KB, and there are four a second.
    ensure!(u128::from(ticks) * 10 < passed.as_millis() * 8 / 10, "it took {ticks} ticks in {passed:?}");
    ensure!(drawn < 500_000, "it drew {drawn} bytes in {passed:?}");
    Ok(())
}

fn ends(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    for signal in ["TERM", "INT", "HUP", "QUIT"] {
        let terminal = Terminal::open(machine, "opencode-egress top")?;
        terminal.shows("q leaves")?;
        machine.succeed(&["pkill", &format!("-{signal}"), "-x", "-f", "opencode-egress top"])?;
        let screen = terminal.shows("ended with 0")?;
        ensure!(!screen.contains("q leaves"), "the screen that was there before is back: {screen}");
        wait("stty", || machine.read("/run/stty-after").ok().filter(|after| !after.is_empty()))?;
        ensure!(machine.read("/run/stty-before")? == machine.read("/run/stty-after")?, "after SIG{signal}");
        machine.succeed(&["rm", "/run/stty-after"])?;
    }
    let terminal = Terminal::open(machine, "opencode-egress top --interval 1")?;
    terminal.shows("q leaves")?;
    machine.succeed(&["systemctl", "stop", "opencode-egress"])?;
    let gone = terminal.shows("! this is from before: no daemon answers");
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    gone?;
    wait("the daemon's return", || terminal.screen().ok().filter(|screen| !screen.contains("from before")))?;
    terminal.press(&["C-c"])?;
    terminal.shows("ended with 0")?;
    let terminal = Terminal::open(machine, "TERM=dumb opencode-egress top")?;
    let screen = terminal.shows("ended with 1")?;
    ensure!(screen.contains("TERM=dumb says"), "{screen}");
    let terminal = Terminal::open(machine, "opencode-egress top")?;
    terminal.shows("q leaves")?;
    drop(terminal);
    wait("the end of one whose terminal is gone", || {
        machine.fail(&["pgrep", "-x", "-f", "opencode-egress top"]).ok()
    })
    .map(drop)
}
