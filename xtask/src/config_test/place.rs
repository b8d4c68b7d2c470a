//! Where a server runs that is asked what it understood.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{machine::wait, process::root};

/// A directory with a home and a project; it goes with this value.
pub(super) struct Place(pub(super) PathBuf);

impl Place {
    pub(super) fn make(files: &[(&str, &str)]) -> Result<Self> {
        let place = Self(root().join("target/config-test").join(std::process::id().to_string()));
        // A repository: in anything else the server reads the directories above it, too.
        for directory in ["home", "project/.git"] {
            fs::create_dir_all(place.0.join(directory))?;
        }
        for (path, content) in files {
            let path = place.0.join(path);
            fs::create_dir_all(path.parent().context("a file has a parent")?)?;
            fs::write(path, content)?;
        }
        Ok(place)
    }

    /// Starts a server without a network.
    pub(super) fn serve(&self, binary: &Path, environment: &[(&str, &str)]) -> Result<Server> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]).arg(binary);
        command.args(["serve", "--hostname", "127.0.0.1", "--port", &Server::PORT.to_string()]);
        command.current_dir(self.0.join("project")).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.0.join("home"));
        // Plugins would be installed from npm, and the server waits for that.
        for switch in ["OPENCODE_DISABLE_AUTOUPDATE", "OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_PURE"] {
            command.env(switch, "1");
        }
        for (name, value) in environment {
            command.env(name, value.replace('@', &self.0.display().to_string()));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Server(command.spawn().context("cannot run unshare")?))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is left is under target/.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that runs, until this value goes.
pub(super) struct Server(Child);

impl Server {
    pub(super) const PORT: u16 = 4096;

    /// Asks until there is an answer: a server that has just started may take a request and leave it.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}/{path}", Self::PORT);
        wait(&format!("the server to answer {url}"), || {
            let mut curl = Command::new("nsenter");
            curl.args(["-t", &self.0.id().to_string(), "-n", "curl", "-s", "-m", "5", &url]);
            serde_json::from_slice(&curl.output().ok()?.stdout).ok()
        })
    }

    /// The rules of the agent that sessions start with.
    pub(super) fn rules(&self) -> Result<Vec<[String; 3]>> {
        let agents = self.get("agent")?;
        let build = agents.as_array().and_then(|agents| agents.iter().find(|agent| agent["name"] == "build"));
        let rules = build.and_then(|agent| agent["permission"].as_array());
        let rules = rules.with_context(|| format!("the server has no rules for the agent: {agents}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(rules.iter().map(|rule| ["permission", "pattern", "action"].map(|key| text(&rule[key]))).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
