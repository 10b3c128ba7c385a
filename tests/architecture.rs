//! The boundaries between the service's modules, and no cycles between files.
//!
//! Reads every path in the source code, in `use` declarations and elsewhere. Tests inside `src/` are exempt. A re-export counts as
//! a use of the file that defines the item, and not of the file that re-exports it.

#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The crates that a module must not use.
const FORBIDDEN_CRATES: &[(&str, &[&str])] = &[
    ("payment_link", &["axum", "reqwest", "sqlx", "tokio"]),
    ("store", &["axum", "reqwest"]),
    ("protocol", &["axum", "sqlx"]),
    ("dojo", &["axum", "sqlx"]),
    ("jobs", &["axum", "sqlx"]),
    ("golive", &["axum", "sqlx"]),
    ("callbacks", &["axum", "sqlx"]),
    ("sharing", &["axum", "sqlx", "tokio"]),
    ("mail", &["axum", "reqwest", "sqlx"]),
    ("api", &["sqlx"]),
    ("console", &["reqwest", "sqlx"]),
];

/// The other modules that a module may use. `application` and the command line put everything together, so they aren't
/// listed.
const ALLOWED_MODULES: &[(&str, &[&str])] = &[
    ("payment_link", &[]),
    ("api_key", &[]),
    ("callbacks", &["payment_link", "retry_after"]),
    ("retry_after", &[]),
    ("sharing", &["payment_link"]),
    ("config", &["api_key", "callbacks", "payment_link"]),
    ("telemetry", &["config", "payment_link"]),
    (
        "dojo",
        &["config", "payment_link", "retry_after", "telemetry"],
    ),
    ("store", &["callbacks", "config", "dojo", "payment_link"]),
    ("mail", &["config", "payment_link", "sharing"]),
    (
        "protocol",
        &["dojo", "mail", "payment_link", "store", "telemetry"],
    ),
    (
        "jobs",
        &[
            "callbacks",
            "config",
            "dojo",
            "mail",
            "payment_link",
            "protocol",
            "store",
            "telemetry",
        ],
    ),
    (
        "api",
        &[
            "api_key",
            "callbacks",
            "config",
            "dojo",
            "payment_link",
            "protocol",
            "sharing",
            "store",
            "telemetry",
        ],
    ),
    (
        "console",
        &[
            "api",
            "api_key",
            "config",
            "golive",
            "mail",
            "payment_link",
            "protocol",
            "store",
            "telemetry",
        ],
    ),
    (
        "golive",
        &[
            "callbacks",
            "config",
            "dojo",
            "mail",
            "payment_link",
            "store",
            "telemetry",
        ],
    ),
];

/// Violations that are tolerated for now: the file, the crate, module or file that it should not use, and how to fix
/// it. Delete an exception when it's no longer needed. Until then, a test fails.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// A file's dependencies.
#[derive(Debug, Default)]
struct File {
    /// Every path whose first segment isn't part of the service.
    crates: BTreeSet<String>,
    /// The other files of its package that it uses.
    files: BTreeSet<String>,
}

/// The source code of one package: its files by their path below the package's `src/`.
struct Package {
    /// The name by which other code calls the library.
    name: String,
    /// The folder of its source code, below the workspace's.
    folder: String,
    sources: BTreeMap<String, Source>,
}

struct Source {
    tokens: Vec<TokenTree>,
    /// Imported names and what they stand for, as written.
    imports: BTreeMap<String, Import>,
}

struct Import {
    path: Vec<String>,
    public: bool,
}

impl Package {
    /// Every package of the workspace. The first one is the service.
    fn all() -> Vec<Self> {
        let manifest = manifest(".");
        let members = manifest
            .lines()
            .find_map(|line| line.strip_prefix("members = ["));
        let members = members.unwrap().trim_end_matches(']').split(',');
        let members = members.map(|member| member.trim().trim_matches('"').to_owned());
        std::iter::once(".".to_owned())
            .chain(members)
            .map(|folder| Self::read(&folder))
            .collect()
    }

    fn service() -> Self {
        Self::read(".")
    }

    fn read(folder: &str) -> Self {
        let manifest = manifest(folder);
        let name = manifest
            .lines()
            .find_map(|line| line.strip_prefix("name = "));
        let name = name.unwrap().trim_matches('"').replace('-', "_");
        let folder = format!("{folder}/src");
        let folder = folder.trim_start_matches("./");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let mut files = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
                    files.push((file.to_owned(), fs::read_to_string(&path).unwrap()));
                }
            }
        }
        assert!(!files.is_empty(), "{folder} contains source code");
        Self::of(&name, folder, files)
    }

    fn of(name: &str, folder: &str, files: impl IntoIterator<Item = (String, String)>) -> Self {
        let sources = files.into_iter().map(|(file, text)| {
            let tokens: TokenStream = text.parse().unwrap();
            let tokens = without_tests(tokens);
            let imports = imports(&tokens);
            (file, Source { tokens, imports })
        });
        Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            sources: sources.collect(),
        }
    }

    /// Like [`breaches`], with the paths of files below the workspace's folder.
    fn breaches(&self) -> BTreeSet<Pair> {
        let breaches = breaches(&self.files());
        let breaches = breaches.into_iter();
        breaches
            .map(|(file, used)| (format!("{}/{file}", self.folder), used))
            .collect()
    }

    /// Like [`cycles`], with the paths of files below the workspace's folder.
    fn cycles(&self, exceptions: &[(&str, &str, &str)]) -> BTreeSet<Pair> {
        let full = |file: &str| format!("{}/{file}", self.folder);
        let mut files = self.files();
        for (file, used) in &mut files {
            used.files.retain(|target| {
                let (file, target) = (full(file), full(target));
                !exceptions
                    .iter()
                    .any(|(from, to, _)| *from == file && *to == target)
            });
        }
        let cycles = cycles(&files).into_iter();
        cycles
            .map(|(file, target)| (full(&file), full(&target)))
            .collect()
    }

    fn files(&self) -> BTreeMap<&str, File> {
        let files = self.sources.keys();
        files
            .map(|file| (file.as_str(), self.dependencies(file)))
            .collect()
    }

    fn dependencies(&self, file: &str) -> File {
        let source = &self.sources[file];
        let mut found = File::default();
        let mut uses = Vec::new();
        paths(&source.tokens, &mut uses);
        let public = source.imports.iter().filter(|(_, import)| import.public);
        for (name, import) in public {
            // A re-export is a dependency only if the file uses the name itself.
            if occurrences(&source.tokens, name) > 1 {
                uses.push(import.path.clone());
            }
        }
        for path in uses {
            match self.resolve(file, &path, 0) {
                Target::File(target) if target != file => {
                    found.files.insert(target);
                }
                Target::File(_) | Target::Unknown => {}
                Target::Crate(name) => {
                    found.crates.insert(name);
                }
            }
        }
        found
    }

    /// The file that defines what a path in `file` stands for.
    fn resolve(&self, file: &str, path: &[String], depth: usize) -> Target {
        let module = module(file);
        let (first, rest) = (path[0].as_str(), &path[1..]);
        let mut absolute: Vec<String> = match first {
            "crate" => Vec::new(),
            "self" | "super" => module.clone(),
            name if name == self.name => return self.definition("lib.rs", &[], rest, depth),
            name if self
                .file_of(&[&module[..], &[name.to_owned()]].concat())
                .is_some() =>
            {
                let inside = [&module[..], &[name.to_owned()]].concat();
                return self.locate(file, &[inside, rest.to_vec()].concat(), depth);
            }
            name => {
                let import = self.sources[file].imports.get(name);
                return match import.filter(|import| import.path[0] != name && depth < 9) {
                    Some(import) => {
                        let path = [&import.path[..], rest].concat();
                        self.resolve(file, &path, depth + 1)
                    }
                    None if rest.is_empty() => Target::Unknown,
                    None => Target::Crate(name.to_owned()),
                };
            }
        };
        if first == "super" {
            absolute.pop();
        }
        let mut rest = rest;
        while rest.first().is_some_and(|segment| segment == "super") {
            absolute.pop();
            rest = &rest[1..];
        }
        absolute.extend_from_slice(rest);
        self.locate(file, &absolute, depth)
    }

    /// The file that defines what an absolute path stands for, from the point of view of `file`.
    fn locate(&self, file: &str, path: &[String], depth: usize) -> Target {
        let longest = (1..=path.len()).rev().find_map(|length| {
            let found = self.file_of(&path[..length])?;
            Some((found, length))
        });
        match longest {
            Some((found, length)) => {
                self.definition(&found, &path[..length], &path[length..], depth)
            }
            None => self.definition(self.root(file), &[], path, depth),
        }
    }

    /// The file that defines an item: `file` itself, or the one from which it re-exports the item.
    fn definition(&self, file: &str, module: &[String], items: &[String], depth: usize) -> Target {
        let Some((item, rest)) = items.split_first() else {
            return Target::File(file.to_owned());
        };
        let Some(source) = self.sources.get(file) else {
            return Target::Unknown;
        };
        let inside = [module, std::slice::from_ref(item)].concat();
        if self.file_of(&inside).is_some() {
            return self.locate(file, &[&inside[..], rest].concat(), depth);
        }
        match source.imports.get(item) {
            Some(import) if depth < 9 => {
                let path = [&import.path[..], rest].concat();
                self.resolve(file, &path, depth + 1)
            }
            _ => Target::File(file.to_owned()),
        }
    }

    fn file_of(&self, module: &[String]) -> Option<String> {
        let path = module.join("/");
        [format!("{path}.rs"), format!("{path}/mod.rs")]
            .into_iter()
            .find(|file| self.sources.contains_key(file))
    }

    /// The root of the crate that a file belongs to: the program's, if that declares the file's outermost module.
    fn root(&self, file: &str) -> &'static str {
        let first = module(file).into_iter().next().unwrap_or_default();
        let is_programs = self.sources.get("main.rs").is_some_and(|main| {
            let pairs = main.tokens.windows(2);
            let mut names = pairs.filter(|pair| pair[0].to_string() == "mod");
            names.any(|pair| pair[1].to_string() == first)
        });
        if file == "main.rs" || is_programs {
            "main.rs"
        } else {
            "lib.rs"
        }
    }
}

/// A file, and what it uses.
type Pair = (String, String);

/// The manifest of a package.
fn manifest(folder: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(folder).join("Cargo.toml")).unwrap()
}

/// What a path stands for.
enum Target {
    File(String),
    Crate(String),
    Unknown,
}

/// The path of a file's module.
fn module(file: &str) -> Vec<String> {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    let path = path.strip_suffix("mod").unwrap_or(path);
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    segments
        .filter(|segment| !["lib", "main"].contains(segment))
        .map(str::to_owned)
        .collect()
}

/// The outermost module that a file belongs to.
fn outermost(file: &str) -> String {
    module(file).into_iter().next().unwrap_or_default()
}

/// The tokens without what is compiled only for tests.
fn without_tests(tokens: TokenStream) -> Vec<TokenTree> {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let attribute = tokens.get(at + 1).map(ToString::to_string);
        let is_test = tokens[at].to_string() == "#"
            && attribute.is_some_and(|text| text.replace(' ', "") == "[cfg(test)]");
        if !is_test {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let is_end = |token: &TokenTree| match token {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            token => token.to_string() == ";",
        };
        let item = tokens[at + 2..].iter().position(is_end);
        at = item.map_or(tokens.len(), |item| at + 2 + item + 1);
    }
    kept
}

fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

/// Whether a `::` is at this place.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}

/// All paths of at least two segments, except for those of public imports.
fn paths(tokens: &[TokenTree], found: &mut Vec<Vec<String>>) {
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(ident) if ident == "use" => {
                let end = end_of_use(tokens, at);
                if !is_public(tokens, at) {
                    let mut imports = Vec::new();
                    use_tree(&tokens[at + 1..end], &[], &mut imports);
                    found.extend(imports.into_iter().map(|(_, path)| path));
                }
                at = end;
            }
            TokenTree::Ident(ident) if is_separator(tokens, at + 1) => {
                let mut path = vec![ident.to_string()];
                at += 1;
                while is_separator(tokens, at) {
                    let Some(TokenTree::Ident(ident)) = tokens.get(at + 2) else {
                        break;
                    };
                    path.push(ident.to_string());
                    at += 3;
                }
                // A type's associated item, such as `Self::new`, is part of the same file or of an import.
                let is_type = path[0].starts_with(char::is_uppercase);
                if !is_type {
                    found.push(path);
                }
            }
            TokenTree::Group(group) => {
                let inside: Vec<_> = group.stream().into_iter().collect();
                paths(&inside, found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

fn end_of_use(tokens: &[TokenTree], at: usize) -> usize {
    let end = (at..tokens.len()).find(|end| is_punct(tokens.get(*end), ';'));
    end.unwrap_or(tokens.len())
}

/// Whether the `use` at this place is public, to any extent.
fn is_public(tokens: &[TokenTree], at: usize) -> bool {
    let before = |distance: usize| at.checked_sub(distance).map(|at| tokens[at].to_string());
    let is_pub = |text: Option<String>| text.is_some_and(|text| text == "pub");
    let in_parentheses = before(1).is_some_and(|text| text.starts_with('('));
    is_pub(before(1)) || in_parentheses && is_pub(before(2))
}

/// The imported names and paths of a `use` declaration.
fn use_tree(tokens: &[TokenTree], prefix: &[String], found: &mut Vec<(String, Vec<String>)>) {
    let trees = tokens.split(|token| is_punct(Some(token), ','));
    for tree in trees.filter(|tree| !tree.is_empty()) {
        let mut path = prefix.to_vec();
        let mut name = None;
        let mut inside = None;
        let mut tokens = tree.iter();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(ident) if ident == "as" => name = tokens.next(),
                TokenTree::Ident(ident) if ident == "self" && !path.is_empty() => {}
                TokenTree::Ident(ident) => path.push(ident.to_string()),
                TokenTree::Group(group) => inside = Some(group.stream()),
                _ => {}
            }
        }
        if let Some(inside) = inside {
            let inside: Vec<_> = inside.into_iter().collect();
            use_tree(&inside, &path, found);
        } else if let Some(last) = path.last() {
            let name = name.map_or_else(|| last.clone(), ToString::to_string);
            found.push((name, path));
        }
    }
}

/// The imports at the top level of a file.
fn imports(tokens: &[TokenTree]) -> BTreeMap<String, Import> {
    let mut imports = BTreeMap::new();
    for at in 0..tokens.len() {
        if matches!(&tokens[at], TokenTree::Ident(ident) if ident == "use") {
            let public = is_public(tokens, at);
            let mut found = Vec::new();
            use_tree(&tokens[at + 1..end_of_use(tokens, at)], &[], &mut found);
            let found = found.into_iter();
            imports.extend(found.map(|(name, path)| (name, Import { path, public })));
        }
    }
    imports
}

fn occurrences(tokens: &[TokenTree], name: &str) -> usize {
    let count = |token: &TokenTree| match token {
        TokenTree::Ident(ident) => usize::from(ident == name),
        TokenTree::Group(group) => {
            let inside: Vec<_> = group.stream().into_iter().collect();
            occurrences(&inside, name)
        }
        _ => 0,
    };
    tokens.iter().map(count).sum()
}

/// Every use of a crate or module that the rules forbid: the file, and what it uses.
fn breaches(files: &BTreeMap<&str, File>) -> BTreeSet<Pair> {
    let mut breaches = BTreeSet::new();
    for (file, used) in files {
        let module = outermost(file);
        let rule = |rules: &[(&str, &'static [&'static str])]| {
            let rule = rules.iter().find(|(name, _)| *name == module);
            rule.map(|(_, names)| *names)
        };
        for name in rule(FORBIDDEN_CRATES).into_iter().flatten() {
            if used.crates.contains(*name) {
                breaches.insert(((*file).to_owned(), (*name).to_owned()));
            }
        }
        let Some(allowed) = rule(ALLOWED_MODULES) else {
            continue;
        };
        for target in &used.files {
            let other = outermost(target);
            if other != module && !allowed.contains(&other.as_str()) {
                breaches.insert(((*file).to_owned(), other));
            }
        }
    }
    breaches
}

/// The files that depend on each other in cycles: each use of a file from which the user is reachable.
fn cycles(files: &BTreeMap<&str, File>) -> BTreeSet<Pair> {
    let reachable = |start: &str| {
        let mut seen = BTreeSet::new();
        let mut next = vec![start];
        while let Some(file) = next.pop() {
            for target in files.get(file).into_iter().flat_map(|file| &file.files) {
                if seen.insert(target.as_str()) {
                    next.push(target);
                }
            }
        }
        seen
    };
    let mut cycles = BTreeSet::new();
    for (file, used) in files {
        for target in &used.files {
            if reachable(target).contains(file) {
                cycles.insert(((*file).to_owned(), target.clone()));
            }
        }
    }
    cycles
}

#[test]
fn modules_use_only_what_is_below_them() {
    let mut breaches = Package::service().breaches();
    breaches.retain(|(file, used)| {
        let is_exception = |(from, to, _): &(&str, &str, &str)| from == file && to == used;
        !EXCEPTIONS.iter().any(is_exception)
    });
    assert!(
        breaches.is_empty(),
        "the file must not use the crate or module: {breaches:#?}"
    );
}

#[test]
fn files_do_not_depend_on_each_other_in_cycles() {
    for package in Package::all() {
        let cycles = package.cycles(EXCEPTIONS);
        assert!(
            cycles.is_empty(),
            "the files depend on each other: {cycles:#?}"
        );
    }
}

#[test]
fn every_exception_is_still_needed() {
    let mut found = Package::service().breaches();
    for package in Package::all() {
        found.extend(package.cycles(&[]));
    }
    let obsolete: Vec<_> = EXCEPTIONS
        .iter()
        .filter(|(file, used, _)| !found.contains(&((*file).to_owned(), (*used).to_owned())))
        .collect();
    assert!(
        obsolete.is_empty(),
        "delete these exceptions: {obsolete:#?}"
    );
}

/// A package of these files, to test the test.
fn package(files: &[(&str, &str)]) -> Package {
    let files = files.iter();
    Package::of(
        "service",
        "src",
        files.map(|(file, text)| ((*file).to_owned(), (*text).to_owned())),
    )
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeSet<Pair> {
    let pairs = pairs.iter();
    pairs
        .map(|(file, used)| ((*file).to_owned(), (*used).to_owned()))
        .collect()
}

#[test]
fn breaches_are_found_in_imports_and_in_other_paths() {
    let package = package(&[
        ("lib.rs", "pub mod api; pub mod store;"),
        (
            "api/mod.rs",
            "pub mod links; fn f() { sqlx::query!(\"SELECT 1\"); }",
        ),
        ("api/links.rs", "use sqlx::{PgPool, postgres::PgRow};"),
        (
            "store/mod.rs",
            "fn f() -> crate::api::Link { axum::serve() }",
        ),
        ("store/fine.rs", "use sqlx::PgPool; // axum::Json"),
        (
            "store/tested.rs",
            "#[cfg(test)] mod tests { use axum::Json; }",
        ),
    ]);
    assert_eq!(
        breaches(&package.files()),
        pairs(&[
            ("api/links.rs", "sqlx"),
            ("api/mod.rs", "sqlx"),
            ("store/mod.rs", "api"),
            ("store/mod.rs", "axum"),
        ])
    );
}

#[test]
fn cycles_are_found_through_imports_paths_and_re_exports() {
    let package = package(&[
        ("lib.rs", "pub mod a; pub mod b; pub mod c;"),
        (
            "a/mod.rs",
            "mod state; mod route; pub use state::State; pub fn routes() { route::routes() }",
        ),
        ("a/state.rs", "pub struct State;"),
        // Only through the facade, so there is no cycle with it.
        ("a/route.rs", "use super::State; pub fn routes() {}"),
        ("b.rs", "use crate::c; fn f() { c::g() }"),
        ("c/mod.rs", "mod deep; pub use deep::g;"),
        ("c/deep.rs", "pub fn g() -> service::b::F {}"),
    ]);
    let files = package.files();
    assert_eq!(files["a/route.rs"].files, ["a/state.rs".to_owned()].into());
    assert_eq!(
        cycles(&files),
        pairs(&[("b.rs", "c/deep.rs"), ("c/deep.rs", "b.rs")])
    );
}
