//! `config-test`: what the real server makes of `opencode.json` as Nix writes it, and of several files at once.
//!
//! The server drops a key that it does not know without a word, and takes the last permission that matches; so it is
//! asked what it understood. docs/opencode-json.md says what follows from the order of files.

mod place;

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    config_test::place::Place,
    opencode,
    process::{ensure as ensure_program, root},
};

/// Where the Nix side of the test is.
const TESTS: &str = "nixos/tests/opencode-json";

/// A rule as the server tells it: tool, pattern, action.
type Rule = [&'static str; 3];

/// The rules of each configuration that has some, in the order that the server must have them.
const ORDER: &[(&str, &[Rule])] = &[
    (
        "permission-order",
        &[
            ["tickets_*", "*", "ask"],
            ["*", "*", "ask"],
            ["bash", "*", "ask"],
            ["bash", "git *", "allow"],
            ["bash", "git push*", "deny"],
            ["bash", "cat *", "allow"],
            ["edit", "*", "deny"],
        ],
    ),
    (
        "permission-set",
        &[
            ["*", "*", "ask"],
            ["bash", "*", "ask"],
            ["bash", "!x", "deny"],
            ["bash", "ls *", "allow"],
            ["webfetch", "*", "deny"],
        ],
    ),
];

/// What the operator says, and what the worktree says against it.
const OPERATOR: &str = r#"{ "permission": { "bash": { "*": "deny", "git status": "allow" } } }"#;
const OPERATOR_PERMISSION: &str = r#"{ "bash": { "*": "deny", "git status": "allow" } }"#;
const WORKTREE: &str = r#"{ "permission": { "bash": { "*": "allow", "curl *": "allow" } } }"#;
const AGENT: &str = r#"{ "agent": { "build": { "permission": { "bash": "allow" } } } }"#;

const DENIED: &[Rule] = &[["bash", "*", "deny"], ["bash", "git status", "allow"]];
/// The worktree has the last word.
const WIDENED: &[Rule] =
    &[["bash", "*", "allow"], ["bash", "git status", "allow"], ["bash", "curl *", "allow"]];
/// The operator has the last word about a pattern, but not about what comes after it.
const WIDENED_BESIDE: &[Rule] =
    &[["bash", "*", "deny"], ["bash", "curl *", "allow"], ["bash", "git status", "allow"]];

/// Files below the server's directory, `home` and `project`, and its environment; `@` is the directory.
struct Layers {
    title: &'static str,
    environment: &'static [(&'static str, &'static str)],
    files: &'static [(&'static str, &'static str)],
    bash: &'static [Rule],
}

const LAYERS: &[Layers] = &[
    Layers {
        title: "the worktree's opencode.json goes before the user's",
        environment: &[],
        files: &[("home/.config/opencode/opencode.json", OPERATOR), ("project/opencode.json", WORKTREE)],
        bash: WIDENED,
    },
    Layers {
        title: "the worktree's .opencode/ goes before OPENCODE_CONFIG",
        environment: &[("OPENCODE_CONFIG", "@/operator.json")],
        files: &[("operator.json", OPERATOR), ("project/.opencode/opencode.json", WORKTREE)],
        bash: WIDENED,
    },
    Layers {
        title: "OPENCODE_CONFIG_CONTENT goes before the worktree, which may still add patterns",
        environment: &[("OPENCODE_CONFIG_CONTENT", OPERATOR)],
        files: &[("project/opencode.json", WORKTREE)],
        bash: WIDENED_BESIDE,
    },
    Layers {
        title: "so does OPENCODE_PERMISSION",
        environment: &[("OPENCODE_PERMISSION", OPERATOR_PERMISSION)],
        files: &[("project/opencode.json", WORKTREE)],
        bash: WIDENED_BESIDE,
    },
    Layers {
        title: "so does the machine's directory",
        environment: &[("OPENCODE_TEST_MANAGED_CONFIG_DIR", "@/etc")],
        files: &[("etc/opencode.json", OPERATOR), ("project/opencode.json", WORKTREE)],
        bash: WIDENED_BESIDE,
    },
    Layers {
        title: "an agent's rules in the worktree come after everybody's",
        environment: &[("OPENCODE_CONFIG_CONTENT", OPERATOR)],
        files: &[("project/opencode.json", AGENT)],
        bash: &[["bash", "*", "deny"], ["bash", "git status", "allow"], ["bash", "*", "allow"]],
    },
    Layers {
        title: "OPENCODE_DISABLE_PROJECT_CONFIG leaves the worktree out",
        environment: &[("OPENCODE_CONFIG", "@/operator.json"), ("OPENCODE_DISABLE_PROJECT_CONFIG", "1")],
        files: &[
            ("operator.json", OPERATOR),
            ("project/opencode.json", WORKTREE),
            ("project/.opencode/opencode.json", WORKTREE),
        ],
        bash: DENIED,
    },
    Layers {
        title: "but not the user's other files",
        environment: &[("OPENCODE_DISABLE_PROJECT_CONFIG", "1")],
        files: &[
            ("home/.config/opencode/opencode.json", OPERATOR),
            ("home/.config/opencode/opencode.jsonc", WORKTREE),
        ],
        bash: WIDENED,
    },
    Layers {
        title: "nor the .opencode/ in the home directory",
        environment: &[("OPENCODE_CONFIG", "@/operator.json"), ("OPENCODE_DISABLE_PROJECT_CONFIG", "1")],
        files: &[("operator.json", OPERATOR), ("home/.opencode/opencode.json", WORKTREE)],
        bash: WIDENED,
    },
];

/// A wrapper, and what the server that it starts takes for the user's name: with none in the worktree, and with one.
struct Wrapper {
    title: &'static str,
    /// Below `nixos/tests/opencode-json/wrapper`, where `overlay.nix` compares it with what `wrapOpencode` makes.
    file: &'static str,
    alone: &'static str,
    in_worktree: &'static str,
}

const WRAPPERS: &[Wrapper] = &[
    Wrapper {
        title: "wrapOpencode goes before the user's files, and the worktree before it",
        file: "opencode.sh",
        alone: "wrapped",
        in_worktree: "worktree",
    },
    Wrapper {
        title: "wrapOpencode with projectConfig = false goes before both",
        file: "opencode-alone.sh",
        alone: "wrapped",
        in_worktree: "wrapped",
    },
];

/// Runs all, and says which failed.
pub(crate) fn run() -> Result<()> {
    ensure_program(
        "the test of opencode.json",
        &[("ip", "iproute2"), ("curl", "curl"), ("unshare", "util-linux")],
    )?;
    let mut failed = 0;
    let mut told = |title: &str, result: Result<()>| match result {
        Ok(()) => println!("ok      {title}"),
        Err(error) => {
            failed += 1;
            println!("FAILED  {title}\n{error:#}");
        }
    };
    match std::env::var_os("NIXPKGS") {
        Some(_) => {
            ensure_program("the test of opencode.json", &[("nix-instantiate", "nix-bin")])?;
            let cases = nix(&format!("import ./{TESTS}/refused.nix"))?;
            for (name, case) in cases.as_object().context("refused.nix is no set")? {
                told(&format!("refused: {name}"), refused(name, case));
            }
        }
        None => println!("SKIPPED the messages of refused.nix: NIXPKGS does not name a nixpkgs, or its lib"),
    }
    let binary = opencode::binary()?;
    let mut golden: Vec<_> = fs::read_dir(root().join(TESTS).join("golden"))?
        .collect::<Result<_, _>>()
        .context("cannot list golden/")?;
    golden.sort_by_key(fs::DirEntry::path);
    for file in golden.iter().map(fs::DirEntry::path) {
        let name =
            file.file_stem().and_then(|stem| stem.to_str()).context("a file in golden/ has no name")?;
        told(&format!("understood: {name}"), understood(&binary, &file, name));
    }
    told("every key of the server's schema is in golden/", complete(&binary, &golden));
    for layers in LAYERS {
        told(layers.title, layered(&binary, layers));
    }
    told("a plugin that is a file does not wait for npm, where that is not to try again", plugin(&binary));
    for wrapper in WRAPPERS {
        told(wrapper.title, wrapped(&binary, wrapper));
    }
    if failed > 0 { bail!("{failed} failed") } else { Ok(()) }
}

/// The wrapper's server has its configuration, as far as no other goes before that.
fn wrapped(binary: &Path, wrapper: &Wrapper) -> Result<()> {
    let named = |name: &str| format!(r#"{{ "username": "{name}" }}"#);
    let text = fs::read_to_string(root().join(TESTS).join("wrapper").join(wrapper.file))?;
    for (worktree, wanted) in [(None, wrapper.alone), (Some(named("worktree")), wrapper.in_worktree)] {
        let (home, own) = (named("home"), named("wrapped"));
        let mut files = vec![("home/.config/opencode/opencode.json", home.as_str()), ("own.json", &own)];
        files.extend(worktree.as_deref().map(|worktree| ("project/opencode.json", worktree)));
        let place = Place::make(&files)?;
        // What Nix puts there: the configuration, the package, and a shell.
        let (config, program) =
            ("/nix/store/@system@-opencode.json", "/nix/store/@system@-opencode/bin/opencode");
        let text = text.replace(config, &place.0.join("own.json").display().to_string());
        let text = text.replace(program, &binary.display().to_string());
        ensure!(!text.contains("@system@"), "something else of the store is in {}: {text}", wrapper.file);
        let executable = place.0.join("opencode");
        fs::write(&executable, format!("#!/bin/sh\n{text}"))?;
        fs::set_permissions(&executable, fs::Permissions::from_mode(0o755))?;
        let reported = place.serve(&executable, &[])?.get("config")?;
        ensure!(
            reported["username"] == wanted,
            "the server has {}, and should have {wanted}",
            reported["username"]
        );
    }
    Ok(())
}

/// The evaluation fails, and the message has the part that is listed.
fn refused(name: &str, case: &Value) -> Result<()> {
    let message = case["message"].as_str().context("no message is listed")?;
    let expression = format!(
        "(import ./nixos/opencode-json {{ lib = import (builtins.getEnv \"NIXPKGS\" + \"/lib\"); }}).mkConfigFromAttrs (import ./{TESTS}/refused.nix).{name}.config"
    );
    match nix(&expression) {
        Ok(text) => bail!("it is taken: {text}"),
        Err(error) if error.to_string().contains(message) => Ok(()),
        Err(error) => bail!("the message does not have `{message}`: {error}"),
    }
}

/// The value of an expression, evaluated at the root.
fn nix(expression: &str) -> Result<Value> {
    let mut command = Command::new("nix-instantiate");
    command.current_dir(root()).args(["--eval", "--strict", "--json", "--expr", expression]);
    let output = command.output().context("cannot run nix-instantiate")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The server reports everything that is in the file, and has its rules in their order.
fn understood(binary: &Path, file: &Path, name: &str) -> Result<()> {
    let written: Value = serde_json::from_slice(&fs::read(file)?)?;
    let place = Place::make(&[])?;
    let server = place.serve(binary, &[("OPENCODE_CONFIG", &file.display().to_string())])?;
    let mut missing = vec![];
    compare(&written, &server.get("config")?, "", &mut missing);
    if !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    if name == "unattended" {
        nothing_asks(&server.rules()?)?;
    }
    match ORDER.iter().find(|(configuration, _)| *configuration == name) {
        Some((_, rules)) => same(&server.rules()?, rules, |_| true),
        None => Ok(()),
    }
}

/// The golden files together have every key at the top of the schema that the server publishes.
fn complete(binary: &Path, golden: &[fs::DirEntry]) -> Result<()> {
    let place = Place::make(&[])?;
    let documentation = place.serve(binary, &[])?.get("doc")?;
    let schema = &documentation["components"]["schemas"]["Config"]["properties"];
    let mut unknown =
        schema.as_object().context("the server publishes no schema of its configuration")?.clone();
    for file in golden {
        let written: serde_json::Map<String, Value> = serde_json::from_slice(&fs::read(file.path())?)?;
        unknown.retain(|key, _| !written.contains_key(key));
    }
    if !unknown.is_empty() {
        bail!("not in golden/: {:?}", unknown.keys().collect::<Vec<_>>());
    }
    Ok(())
}

/// The server loads a plugin and answers, without a network, and long before npm's tries would be over.
fn plugin(binary: &Path) -> Result<()> {
    let place = Place::make(&[])?;
    let loaded = place.0.join("loaded");
    let code =
        "import { writeFileSync } from 'fs'; export const Plugin = async () => (writeFileSync('@', ''), {})";
    fs::write(place.0.join("plugin.js"), code.replace('@', &loaded.display().to_string()))?;
    let config = r#"{ "plugin": ["file://@/plugin.js"] }"#;
    fs::write(place.0.join("own.json"), config.replace('@', &place.0.display().to_string()))?;
    let environment =
        [("OPENCODE_CONFIG", "@/own.json"), ("OPENCODE_PURE", "false"), ("npm_config_fetch_retries", "0")];
    place.serve(binary, &environment)?.get("agent")?;
    ensure!(loaded.exists(), "the server answers, and has not loaded the plugin");
    Ok(())
}

/// The rules about the shell are those that follow from the order of the files.
fn layered(binary: &Path, layers: &Layers) -> Result<()> {
    let place = Place::make(layers.files)?;
    let server = place.serve(binary, layers.environment)?;
    same(&server.rules()?, layers.bash, |rule| rule[0] == "bash")
}

/// The server's rules, as far as they are `of_interest`, end with those that are `wanted`. It puts one about its own
/// directory after them.
fn same(rules: &[[String; 3]], wanted: &[Rule], of_interest: impl Fn(&[String; 3]) -> bool) -> Result<()> {
    let configured = rules.iter().filter(|rule| rule[0] != "external_directory" && of_interest(rule));
    let configured: Vec<_> = configured.collect();
    let last = &configured[configured.len().saturating_sub(wanted.len())..];
    if last.iter().map(|rule| rule.each_ref().map(String::as_str)).eq(wanted.iter().copied()) {
        return Ok(());
    }
    bail!("the rules are {configured:?}, and should end with {wanted:?}")
}

/// No rule asks that a later one for the same does not take back. The question tool asks by itself.
fn nothing_asks(rules: &[[String; 3]]) -> Result<()> {
    let last: BTreeMap<_, _> =
        rules.iter().map(|[tool, pattern, action]| ((tool, pattern), action)).collect();
    let asks: Vec<_> = last
        .iter()
        .filter(|((tool, _), action)| {
            action.as_str() == "ask" || (*tool == "question" && action.as_str() != "deny")
        })
        .collect();
    ensure!(asks.is_empty(), "a session would wait for an answer: {asks:?}");
    Ok(())
}

/// What `written` has and `reported` has not, or has otherwise.
fn compare(written: &Value, reported: &Value, path: &str, missing: &mut Vec<String>) {
    match (written, reported) {
        (Value::Object(written), Value::Object(reported)) => {
            for (key, value) in written {
                match reported.get(key) {
                    Some(reported) => compare(value, reported, &format!("{path}/{key}"), missing),
                    None => missing.push(format!("{path}/{key} is dropped")),
                }
            }
        }
        _ if written == reported => {}
        _ => missing.push(format!("{path} is {reported} instead of {written}")),
    }
}
