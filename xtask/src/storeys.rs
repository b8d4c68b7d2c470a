//! The structure that ARCHITECTURE.md describes, held: in `opencode-egress` no file imports from a storey above its own, and
//! nowhere do files import each other in a circle.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use syn::{
    Expr, Ident, ItemMod, ItemUse, Macro, Token, UseName, UsePath, UseRename, UseTree, Visibility,
    punctuated::Punctuated,
    visit::{self, Visit},
};

use crate::{process::root, render};

/// The rooms of `opencode-egress/src` and the storey of each, from the ground up.
const STOREYS: [(&str, u8); 9] = [
    ("policy", 1),
    ("cgroups", 2),
    ("report", 2),
    ("control", 3),
    ("kernel", 3),
    ("daemon", 4),
    ("resolver", 4),
    ("command", 5),
    ("main", 6),
];

/// A source file, by the path of its module: `["kernel", "pins"]`.
type Module = Vec<String>;

/// A path as it is written in a file, from its first segment on.
struct Written {
    path: Vec<String>,
    line: usize,
    /// By `pub use`, so that others find it under this module's name.
    reexport: bool,
}

/// That one file names something of another.
struct Import {
    from: Module,
    to: Module,
    file: PathBuf,
    line: usize,
    reexport: bool,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} imports {}", self.file.display(), self.line, self.to.join("::"))
    }
}

/// Collects the paths of a file, but for those of its tests.
#[derive(Default)]
struct Paths(Vec<Written>);

impl Paths {
    fn add(&mut self, path: Vec<Ident>, reexport: bool) {
        let line = path.first().map_or(0, |first| first.span().start().line);
        self.0.push(Written { path: path.iter().map(Ident::to_string).collect(), line, reexport });
    }

    /// `a::{b, c::d}` is `a::b` and `a::c::d`.
    fn add_tree(&mut self, mut path: Vec<Ident>, tree: &UseTree, reexport: bool) {
        match tree {
            UseTree::Path(UsePath { ident, tree, .. }) => {
                path.push(ident.clone());
                self.add_tree(path, tree, reexport);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_tree(path.clone(), tree, reexport));
            }
            UseTree::Name(UseName { ident }) | UseTree::Rename(UseRename { ident, .. }) => {
                path.push(ident.clone());
                self.add(path, reexport);
            }
            UseTree::Glob(_) => self.add(path, reexport),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(vec![], &item.tree, !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        // One segment alone is a name of this file's.
        if path.segments.len() > 1 {
            self.add(path.segments.iter().map(|segment| segment.ident.clone()).collect(), false);
        }
        visit::visit_path(self, path);
    }

    /// The arguments of those that are called like functions.
    fn visit_macro(&mut self, call: &'ast Macro) {
        let arguments = call.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated);
        let mut paths = Paths::default();
        arguments.iter().flatten().for_each(|argument| paths.visit_expr(argument));
        self.0.extend(paths.0);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    /// `pub(in crate::daemon)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

/// The files of a crate, with what each writes.
struct Sources(BTreeMap<Module, (PathBuf, Vec<Written>)>);

impl Sources {
    fn read(directory: &str) -> Result<Self> {
        let mut paths = vec![];
        render::collect(&root().join(directory), &mut paths)?;
        let is_test = |path: &PathBuf| path.iter().any(|part| part == "tests" || part == "tests.rs");
        let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
        let files = paths.into_iter().filter(|path| is_source(path) && !is_test(path)).map(|path| {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((path.strip_prefix(root())?.to_owned(), text))
        });
        Self::of(Path::new(directory), files.collect::<Result<Vec<_>>>()?)
    }

    fn of(directory: &Path, files: impl IntoIterator<Item = (PathBuf, String)>) -> Result<Self> {
        let files = files.into_iter().map(|(path, text)| {
            let mut paths = Paths::default();
            paths.visit_file(&syn::parse_file(&text).with_context(|| path.display().to_string())?);
            Ok((module(path.strip_prefix(directory)?), (path, paths.0)))
        });
        Ok(Self(files.collect::<Result<_>>()?))
    }

    /// The file that has what a path in `from` names; `None` where that is in no file of this crate.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let mut at = from.clone();
        for (index, segment) in path.iter().enumerate() {
            match segment.as_str() {
                // main.rs calls the library by its name.
                "crate" | "opencode_egress" => at.clear(),
                "self" => {}
                "super" => drop(at.pop()),
                name => {
                    let below = [&at[..], &[name.to_owned()]].concat();
                    if self.0.contains_key(&below) {
                        at = below;
                    } else {
                        return (index > 0).then(|| self.behind(at, name));
                    }
                }
            }
        }
        Some(at)
    }

    /// Where a module has this name from, if by `pub use`; otherwise it is its own.
    fn behind(&self, module: Module, name: &str) -> Module {
        let written = self.0.get(&module).into_iter().flat_map(|(_, written)| written);
        let mut reexports =
            written.filter(|one| one.reexport && one.path.last().is_some_and(|last| last == name));
        reexports.find_map(|one| self.resolve(&module, &one.path)).unwrap_or(module)
    }

    /// What each file imports from which, once for each.
    fn imports(&self) -> Vec<Import> {
        let mut imports: Vec<Import> = vec![];
        for (from, (file, written)) in &self.0 {
            let mut seen = BTreeSet::new();
            for Written { path, line, reexport } in written {
                match self.resolve(from, path) {
                    Some(to) if to != *from && !to.is_empty() && seen.insert((to.clone(), *reexport)) => {
                        let (from, file) = (from.clone(), file.clone());
                        imports.push(Import { from, to, file, line: *line, reexport: *reexport });
                    }
                    _ => {}
                }
            }
        }
        imports
    }
}

/// The module of a file. A program's `main.rs` is one of its own here: it stands above the library.
fn module(path: &Path) -> Module {
    let parts = path.with_extension("");
    let mut parts: Module = parts.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    parts.pop_if(|last| last == "mod" || last == "lib");
    parts
}

/// Imports of something that stands above.
fn upwards(imports: &[Import]) -> Result<Vec<String>> {
    let storey = |module: &Module| {
        let room = module.first().map_or("", String::as_str);
        let found = STOREYS.iter().find(|(name, _)| *name == room);
        found
            .map(|(_, storey)| *storey)
            .with_context(|| format!("{room} has no storey; give it one in {}", file!()))
    };
    let mut wrong = vec![];
    for import in imports {
        let (from, to) = (storey(&import.from)?, storey(&import.to)?);
        if to > from {
            wrong.push(format!("{import}, which is on storey {to}, from storey {from}"));
        }
    }
    Ok(wrong)
}

/// The imports that lead from a file back to itself. A re-export is a door of its folder, and nothing that the file needs.
fn circles(imports: &[Import]) -> Vec<String> {
    let imports: Vec<_> = imports.iter().filter(|import| !import.reexport).collect();
    let leads_back = |import: &&&Import| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![&import.to]);
        while let Some(file) = next.pop() {
            if reached.insert(file) {
                next.extend(imports.iter().filter(|import| import.from == *file).map(|import| &import.to));
            }
        }
        reached.contains(&import.from)
    };
    imports.iter().filter(leads_back).map(ToString::to_string).collect()
}

#[test]
fn no_file_imports_from_a_storey_above_its_own() -> Result<()> {
    let wrong = upwards(&Sources::read("opencode-egress/src")?.imports())?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn no_files_import_each_other() -> Result<()> {
    let mut all = vec![];
    for directory in [
        "opencode-egress-common/src",
        "opencode-egress-ebpf/src",
        "opencode-egress/src",
        "opencode-egress/benches/hotpath",
        "xtask/src",
    ] {
        all.extend(circles(&Sources::read(directory)?.imports()));
    }
    ensure!(all.is_empty(), "these import each other:\n{}", all.join("\n"));
    Ok(())
}

/// What is wrong in a crate of these files, and of one for each room: what stands above, and circles.
fn wrong_in(files: &[(&str, &str)]) -> Result<(Vec<String>, Vec<String>)> {
    let rooms = STOREYS.map(|(room, _)| format!("{room}/mod.rs"));
    let rooms = rooms.iter().map(|room| (room.as_str(), ""));
    let files = rooms.chain(files.iter().copied());
    let files = files.map(|(path, text)| (path.into(), text.to_owned()));
    let imports = Sources::of(Path::new(""), files)?.imports();
    Ok((upwards(&imports)?, circles(&imports)))
}

#[test]
fn an_import_from_above_is_found_however_it_is_written() -> Result<()> {
    for import in [
        "use crate::daemon::state::Daemon;",
        "use crate::daemon::Daemon;",
        "use {\n    crate::{policy::Rule,\n daemon::{self, state::Daemon}},\n};",
        "pub fn of(daemon: &crate::daemon::state::Daemon) {}",
        "use super::super::daemon::state as above;",
        "fn f() { println!(\"{}\", crate::daemon::state::text()); }",
    ] {
        let text = format!(
            "// first\nuse std::fs;\n{import}\n#[cfg(test)]\nmod tests {{ use crate::command::run; }}\n"
        );
        let (upwards, circles) = wrong_in(&[
            ("report/view.rs", &text),
            ("policy/mod.rs", "// use crate::daemon::state;\npub(in crate::report) struct Rule;"),
            ("daemon/mod.rs", "mod state;\npub use state::Daemon;"),
            ("daemon/state.rs", "use crate::report::view::View;\npub struct Daemon;"),
            ("command/run.rs", ""),
        ])?;
        let at = if import.contains('\n') { 4 } else { 3 };
        assert!(!upwards.is_empty(), "{import}");
        for wrong in upwards {
            assert!(wrong.starts_with(&format!("report/view.rs:{at} imports daemon")), "{import}: {wrong}");
            assert!(wrong.ends_with(", which is on storey 4, from storey 2"), "{wrong}");
        }
        assert_eq!(circles.len(), 2, "{import}: {circles:?}");
    }
    Ok(())
}

#[test]
fn a_reexport_is_no_circle_and_still_an_import_from_above() -> Result<()> {
    let (upwards, circles) = wrong_in(&[
        ("report/view.rs", "pub use crate::daemon::start::Start;"),
        ("daemon/start.rs", "use crate::report::view::View;"),
    ])?;
    assert_eq!(upwards, ["report/view.rs:1 imports daemon::start, which is on storey 4, from storey 2"]);
    assert_eq!(circles, Vec::<String>::new());
    Ok(())
}

#[test]
fn circles_are_found_and_what_only_leads_to_one_is_not() -> Result<()> {
    let (upwards, circles) = wrong_in(&[
        ("kernel/a.rs", "use super::b::B;"),
        ("kernel/b.rs", "use crate::kernel::c::C;"),
        ("kernel/c.rs", "\nuse crate::kernel::a::A;\nuse crate::kernel::d::D;"),
        ("kernel/d.rs", "use crate::report::e::E;"),
        ("report/e.rs", "use crate::report::f::F;"),
        ("report/f.rs", "use crate::report::e::E;"),
        ("daemon/start.rs", "use crate::kernel::a::A;"),
    ])?;
    assert_eq!(upwards, Vec::<String>::new());
    assert_eq!(
        circles,
        [
            "kernel/a.rs:1 imports kernel::b",
            "kernel/b.rs:1 imports kernel::c",
            "kernel/c.rs:2 imports kernel::a",
            "report/e.rs:1 imports report::f",
            "report/f.rs:1 imports report::e",
        ]
    );
    assert!(
        wrong_in(&[("attic/a.rs", "use crate::policy::P;"), ("policy/mod.rs", "")]).is_err(),
        "a room without a storey"
    );
    Ok(())
}
