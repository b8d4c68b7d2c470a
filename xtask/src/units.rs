//! The units of the daemon and of the resolver are written twice: in `dist` for packagers, and in Nix for the module. This compares
//! the first with what the module renders, setting by setting.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    process::{apt_install, checked, root},
    render,
};

/// A setting that the two have on purpose not alike, and why.
struct Difference {
    setting: &'static str,
    /// The value in `dist`, as [`settings`] has it; `None` where it has no such setting.
    dist: Option<&'static str>,
    /// The value that the module renders.
    module: Option<&'static str>,
    /// Why they differ.
    because: &'static str,
}

/// A unit that is written twice.
struct Unit {
    name: &'static str,
    /// Where the module has it.
    nix: &'static str,
    differences: &'static [Difference],
}

const UNITS: [Unit; 5] = [
    Unit { name: "opencode-egress.service", nix: "nixos/egress/daemon.nix", differences: DAEMON },
    Unit {
        name: "opencode-egress-resolver.service",
        nix: "nixos/egress/resolver.nix",
        differences: RESOLVER,
    },
    Unit { name: "opencode-keys.service", nix: "nixos/keys/units.nix", differences: KEYS },
    Unit { name: "opencode-keys-gone.service", nix: "nixos/keys/units.nix", differences: GONE },
    Unit { name: "opencode-keys-reload.service", nix: "nixos/keys/units.nix", differences: RELOAD },
];

/// NixOS adds it to every unit.
const ENVIRONMENT: Difference = Difference {
    setting: "Service.Environment",
    dist: None,
    module: Some(
        r#""LOCALE_ARCHIVE=/usr/lib/locale/locale-archive" "PATH=/usr/bin:/usr/sbin" "TZDIR=/usr/share/zoneinfo""#,
    ),
    because: "NixOS has every unit's programs, locales and time zones in its environment",
};

const RESOLVER: &[Difference] = &[
    Difference {
        setting: "Service.ExecStart",
        dist: Some("/usr/bin/opencode-egress resolve"),
        module: Some("/nix/store/opencode-egress/bin/opencode-egress resolve"),
        because: "the program is in the store",
    },
    ENVIRONMENT,
];

const KEYS: &[Difference] = &[
    Difference {
        setting: "Service.ExecStartPre",
        dist: Some(
            "+/usr/bin/opencode-egress attach --timeout 60 keys +/usr/libexec/opencode-keys-load check /etc/opencode-keys/list /usr/libexec/opencode-keys-load start /etc/opencode-keys/list",
        ),
        module: Some(
            "+/etc/opencode-egress/bin/opencode-egress attach --timeout 60 keys +/etc/opencode-keys/load check /etc/opencode-keys/list /etc/opencode-keys/load start /etc/opencode-keys/list",
        ),
        because: IN_STORE,
    },
    Difference {
        setting: "Service.ExecStart",
        dist: Some("/usr/sbin/nginx -c /etc/opencode-keys/nginx.conf -e stderr"),
        module: Some("/nix/store/nginx/bin/nginx -c /etc/opencode-keys/nginx.conf -e stderr"),
        because: IN_STORE,
    },
    Difference {
        setting: "Service.ExecReload",
        dist: Some(
            "+/usr/libexec/opencode-keys-load reload /etc/opencode-keys/list /usr/sbin/nginx -t -q -c /etc/opencode-keys/nginx.conf -e stderr /bin/kill -HUP $MAINPID",
        ),
        module: Some(
            "+/etc/opencode-keys/load reload /etc/opencode-keys/list /nix/store/nginx/bin/nginx -t -q -c /etc/opencode-keys/nginx.conf -e stderr /usr/bin/kill -HUP $MAINPID",
        ),
        because: IN_STORE,
    },
    Difference {
        setting: "Service.MemoryMax",
        dist: Some("2G"),
        module: Some("2483027968"),
        because: "some of the host's providers have `models`",
    },
    Difference {
        setting: "Service.LoadCredential",
        dist: None,
        module: Some(
            "a.anthropic:/run/secrets/a b.anthropic:/run/secrets/b b.google:/run/secrets/own b.many:/run/secrets/own b.misnamed:/run/secrets/own b.own:/run/secrets/own b.untrusted:/run/secrets/own",
        ),
        because: "the keys are the host's",
    },
    Difference {
        setting: "Service.SetCredential",
        dist: None,
        module: Some(
            "a.anthropic:none b.anthropic:none b.google:none b.many:none b.misnamed:none b.own:none b.untrusted:none",
        ),
        because: "the keys are the host's",
    },
    ENVIRONMENT,
];

const GONE: &[Difference] = &[
    Difference {
        setting: "Service.ExecStart",
        dist: Some("/usr/sbin/nginx -c /etc/opencode-keys/gone.conf -e stderr"),
        module: Some("/nix/store/nginx/bin/nginx -c /etc/opencode-keys/gone.conf -e stderr"),
        because: IN_STORE,
    },
    ENVIRONMENT,
];

const RELOAD: &[Difference] = &[
    Difference {
        setting: "Service.ExecStart",
        dist: Some("/usr/libexec/opencode-keys-load follow /etc/opencode-keys/list"),
        module: Some("/etc/opencode-keys/load follow /etc/opencode-keys/list"),
        because: IN_STORE,
    },
    ENVIRONMENT,
];

/// Why the module names another file.
const IN_STORE: &str = "the programs are in the store, and the module says where";

const DAEMON: &[Difference] = &[
    Difference {
        setting: "Service.ExecStart",
        dist: Some("/usr/bin/opencode-egress run"),
        module: Some(
            "/nix/store/opencode-egress/bin/opencode-egress run --config /etc/opencode-egress/policy.json",
        ),
        because: "the program is in the store, and the module says which file it wrote",
    },
    Difference {
        setting: "Service.ExecReload",
        dist: Some("/usr/bin/opencode-egress reload"),
        module: Some("/nix/store/opencode-egress/bin/opencode-egress reload"),
        because: "the program is in the store",
    },
    ENVIRONMENT,
    Difference {
        setting: "Service.RestartMode",
        dist: None,
        module: Some("direct"),
        because: "units that require the daemon, which only the module writes, must not fail when one of its starts does; \
                  systemd before 254 would warn of it",
    },
    Difference {
        setting: "Unit.JobRunningTimeoutSec",
        dist: None,
        module: Some("60"),
        because: "what waits for a daemon that is started again and again, as RestartMode=direct has it, must end",
    },
];

/// The settings of a unit file: what is assigned to each, by `Section.Key`. systemd joins the assignments of a list, so
/// their words are joined here; but `~` negates the rest of its own line alone, so lines stay apart where one has it.
fn settings(text: &str) -> Result<BTreeMap<String, String>> {
    let mut lines: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut section = "";
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else {
            let (key, value) = line.split_once('=').with_context(|| format!("no setting: {line}"))?;
            let value = match value {
                "true" => "yes",
                "false" => "no",
                other => other,
            };
            lines.entry(format!("{section}.{key}")).or_default().push(value);
        }
    }
    let joined = |values: Vec<&str>| {
        let negated = values.iter().any(|value| value.starts_with('~'));
        values.join(if negated { "\n" } else { " " })
    };
    Ok(lines.into_iter().map(|(name, values)| (name, joined(values))).collect())
}

/// What the two differ in, but for what is listed; and what is listed and is not so.
fn compare(differences: &[Difference], dist: &str, module: &str) -> Result<Vec<String>> {
    let (dist, module) = (settings(dist)?, settings(module)?);
    let names: BTreeSet<_> = dist.keys().chain(module.keys()).map(String::as_str).collect();
    let mut wrong = vec![];
    for name in names {
        let found = (dist.get(name).map(String::as_str), module.get(name).map(String::as_str));
        let listed = differences.iter().find(|difference| difference.setting == name);
        let expected = listed.map(|difference| (difference.dist, difference.module));
        if expected.map_or(found.0 != found.1, |expected| expected != found) {
            let because = listed.map_or("a difference that is not listed", |listed| listed.because);
            wrong.push(format!("{name} is {:?} in dist and {:?} in the module: {because}", found.0, found.1));
        }
    }
    let unknown = differences
        .iter()
        .filter(|listed| !dist.contains_key(listed.setting) && !module.contains_key(listed.setting));
    wrong.extend(unknown.map(|listed| format!("{} is listed, and neither has it", listed.setting)));
    Ok(wrong)
}

#[test]
fn the_module_and_dist_have_the_same_units() -> Result<()> {
    for Unit { name, nix, differences } in UNITS {
        let dist = read(&root().join("dist").join(name))?;
        let rendered: Vec<_> = fs::read_dir(render::directory())?
            .flatten()
            .map(|host| host.path().join("etc/systemd/system").join(name))
            .filter(|unit| unit.exists())
            .collect();
        ensure!(!rendered.is_empty(), "no host in {} has {name}", render::directory().display());
        for unit in rendered {
            let wrong = compare(differences, &dist, &read(&unit)?)?;
            ensure!(
                wrong.is_empty(),
                "{}, rendered from {nix}:\n{}\nchange one of the two, or list the difference with its reason",
                unit.display(),
                wrong.join("\n")
            );
        }
    }
    Ok(())
}

/// As they are, but for where it may write and what only a host has.
#[test]
fn nginx_takes_the_templates() -> Result<()> {
    apt_install("nginx' templates", &["nginx", "ca-certificates"])?;
    let directory = std::env::temp_dir().join(format!("xtask-nginx-templates-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let file = |name: &str, text: &str| fs::write(directory.join(name), text);
    // As opencode-keys-load writes them.
    file(
        "tokens.conf",
        "map $http_x_api_key $keys_known_0 { default ''; }\nmap $http_authorization $keys_known_1 { default ''; }\n",
    )?;
    file("keys.conf", "geo $keys_key_0 { default x; }\ngeo $keys_key_1 { default x; }\n")?;
    let own = directory.to_str().context("the directory's name is no UTF-8")?;
    for name in ["opencode-keys-gone", "opencode-keys"] {
        let template = read(&root().join(format!("dist/{name}.conf")))?
            .replace(&format!("/run/{name}/"), &format!("{own}/"));
        file("nginx.conf", &template)?;
        let mut nginx = Command::new("nginx");
        nginx.args(["-t", "-q", "-e", "stderr", "-c"]).arg(directory.join("nginx.conf"));
        checked(nginx).with_context(|| format!("dist/{name}.conf"))?;
    }
    fs::remove_dir_all(directory)?;
    Ok(())
}

/// Variables and the file that one of them names are written twice, too.
#[test]
fn the_module_and_dist_have_programs_fail_as_fast() -> Result<()> {
    let dist = read(&root().join("dist/fail-fast.env"))?;
    let variables = dist.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let host = render::directory().join("two");
    let unit = read(&host.join("etc/systemd/system/opencode-a.service"))?;
    for variable in variables {
        let variable = variable.replace("/usr/share/opencode-egress/", "/etc/opencode-instances/a/");
        ensure!(
            unit.contains(&format!("Environment={variable:?}\n")),
            "dist/fail-fast.env has {variable}, and nixos/units/fail-fast.nix has not"
        );
    }
    let nix = read(&root().join("nixos/units/fail-fast.nix"))?;
    for name in nix.lines().filter_map(|line| line.trim().strip_suffix(';')?.split_once(" = ")) {
        ensure!(
            dist.contains(&format!("\n{}=", name.0)),
            "nixos/units/fail-fast.nix has {}, and dist/fail-fast.env has not",
            name.0
        );
    }
    let wgetrc = read(&host.join("nix/store/opencode-a-files/wgetrc"))?;
    ensure!(wgetrc == read(&root().join("dist/wgetrc"))?, "the module has another wgetrc than dist");
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[test]
fn a_difference_in_any_setting_is_found() -> Result<()> {
    let base = "[Service]\nExecStart=/usr/bin/opencode-egress run\nFilter=@a\nFilter=~@b @c\nPaths=/x /y\nPrivate=yes\n";
    let same = base.replace("/x /y\n", "/x\nPaths=/y\n").replace("yes", "true");
    let found = |other: &str| compare(&[], base, other);
    assert_eq!(found(&same)?, Vec::<String>::new());
    for (from, to, setting) in [
        ("~@b @c", "~@b\nFilter=@c", "Service.Filter"),
        ("Paths=/x /y\n", "Paths=/x\n", "Service.Paths"),
        ("Private=yes\n", "", "Service.Private"),
        ("Private=yes\n", "Private=yes\n[Unit]\nPrivate=yes\n", "Unit.Private"),
    ] {
        let wrong = found(&base.replace(from, to))?;
        assert!(matches!(&wrong[..], [one] if one.starts_with(setting)), "{to:?}: {wrong:?}");
    }
    Ok(())
}
