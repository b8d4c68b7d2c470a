//! The clients, and what they ask for.

/// The name that is on the list, and the one that is not.
pub(super) const LISTED: &str = "api.example.org";
pub(super) const UNLISTED: &str = "api.example.net";

/// How often each is tried; the median counts.
pub(super) const RUNS: usize = 3;

/// A client.
///
/// In its commands stand `{NAME}` for the name that it asks for, `{CA}` for the authority's certificate, `{BUILT}` for a directory for what is
/// built, `{PROGRAMS}` for that of `programs/`, `{OPENCODE}` for the real server, `{ARCH}` for the processor as npm's packages have it.
pub(super) struct Client {
    pub(super) title: &'static str,
    /// Programs that it takes, each with the Debian package that has it.
    pub(super) install: &'static [(&'static str, &'static str)],
    /// What it takes besides, done unconfined beforehand.
    pub(super) prepare: &'static str,
    /// Prints its version.
    pub(super) version: &'static str,
    pub(super) command: &'static str,
    /// In its words for a name that does not exist.
    pub(super) words: &'static str,
    pub(super) proof: Proof,
    pub(super) tries: Tries,
}

/// What shows that a listed name worked.
#[derive(Clone, Copy)]
pub(super) enum Proof {
    /// It ended well, and the second host had a request for the name at this port.
    Request(u16),
    /// The second host had a connection at this port, where nobody serves what it wants.
    Connection(u16),
    /// It ended well: it only asks.
    Answer,
}

/// How often it tries before it says so.
#[derive(Clone, Copy)]
pub(super) enum Tries {
    Once,
    /// Again and again, unless its environment has this.
    Unless(&'static str),
    /// Again and again, and nothing turns that off.
    Always,
}

/// The client that the others differ from.
const CURL: Client = Client {
    title: "curl",
    install: &[("curl", "curl")],
    prepare: "",
    version: "curl --version",
    command: "curl -sS -o /dev/null https://{NAME}/",
    words: "Could not resolve host",
    proof: Proof::Request(443),
    tries: Tries::Once,
};

pub(super) const CLIENTS: &[Client] = &[
    Client {
        title: "glibc: getent",
        install: &[],
        version: "getent --version",
        command: "getent ahosts {NAME} || echo status $?",
        words: "status 2",
        proof: Proof::Answer,
        ..CURL
    },
    Client {
        title: "glibc: C",
        install: &[("gcc", "gcc")],
        prepare: "gcc -o {BUILT}/get-glibc {PROGRAMS}/get.c",
        version: "ldd --version",
        command: "{BUILT}/get-glibc {NAME}",
        words: "Name or service not known",
        proof: Proof::Request(80),
        ..CURL
    },
    Client {
        title: "musl: C, static",
        install: &[("musl-gcc", "musl-tools")],
        prepare: "musl-gcc -static -o {BUILT}/get-musl {PROGRAMS}/get.c",
        version: "dpkg-query -W musl-tools",
        command: "{BUILT}/get-musl {NAME}",
        words: "Name does not resolve",
        proof: Proof::Request(80),
        ..CURL
    },
    CURL,
    Client {
        title: "wget",
        install: &[("wget", "wget")],
        version: "wget --version",
        command: "wget -nv -O /dev/null --ca-certificate={CA} https://{NAME}/",
        words: "unable to resolve host address",
        ..CURL
    },
    Client {
        title: "Git: clone by HTTPS",
        install: &[("git", "git")],
        version: "git --version",
        command: "git clone -q https://{NAME}/left.git/.git $HOME/left",
        words: "Could not resolve host",
        ..CURL
    },
    Client {
        title: "SSH",
        install: &[("ssh", "openssh-client")],
        version: "ssh -V",
        command: "ssh -o BatchMode=yes {NAME}",
        words: "Name or service not known",
        proof: Proof::Connection(22),
        ..CURL
    },
    Client {
        title: "Python: urllib",
        install: &[("/usr/bin/python3", "python3")],
        version: "/usr/bin/python3 --version",
        command: "/usr/bin/python3 -c 'import urllib.request; urllib.request.urlopen(\"https://{NAME}/\").read()'",
        words: "Name or service not known",
        ..CURL
    },
    Client {
        title: "pip: download",
        install: &[("/usr/bin/pip3", "python3-pip")],
        version: "/usr/bin/pip3 --version",
        command: "/usr/bin/pip3 download left --index-url https://{NAME}/simple/ -d $HOME",
        words: "Could not find a version",
        tries: Tries::Unless("PIP_RETRIES=0"),
        ..CURL
    },
    Client {
        title: "Node.js: fetch",
        install: &[("node", "nodejs")],
        version: "node --version",
        command: "node -e 'fetch(\"https://{NAME}/\")'",
        words: "getaddrinfo ENOTFOUND",
        ..CURL
    },
    Client {
        title: "Node.js: dns.lookup (libuv)",
        install: &[("node", "nodejs")],
        version: "node --version",
        command: "node -e 'require(\"dns\").promises.lookup(\"{NAME}\")'",
        words: "getaddrinfo ENOTFOUND",
        proof: Proof::Answer,
        ..CURL
    },
    Client {
        title: "Node.js: dns.resolve4 (c-ares)",
        install: &[("node", "nodejs")],
        version: "node --version",
        command: "node -e 'require(\"dns\").promises.resolve4(\"{NAME}\")'",
        words: "queryA ENOTFOUND",
        proof: Proof::Answer,
        ..CURL
    },
    Client {
        title: "npm: view",
        install: &[("npm", "npm")],
        version: "npm --version",
        command: "npm view left version --registry https://{NAME}/",
        words: "ENOTFOUND",
        tries: Tries::Unless("npm_config_fetch_retries=0"),
        ..CURL
    },
    Client {
        title: "Bun: fetch",
        install: &[("npm", "npm")],
        prepare: BUN,
        version: "{BUILT}/bun/node_modules/@oven/bun-linux-{ARCH}/bin/bun --version",
        command: "{BUILT}/bun/node_modules/@oven/bun-linux-{ARCH}/bin/bun -e 'await fetch(\"https://{NAME}/\")'",
        words: "getaddrinfo ENOTFOUND",
        ..CURL
    },
    Client {
        title: "Bun: dns.lookup",
        install: &[("npm", "npm")],
        prepare: BUN,
        version: "{BUILT}/bun/node_modules/@oven/bun-linux-{ARCH}/bin/bun --version",
        command: "{BUILT}/bun/node_modules/@oven/bun-linux-{ARCH}/bin/bun -e 'await Bun.dns.lookup(\"{NAME}\")'",
        words: "ENOTFOUND",
        proof: Proof::Answer,
        ..CURL
    },
    Client {
        title: "opencode: a message to its provider",
        install: &[("git", "git")],
        version: "{OPENCODE} --version",
        // A server in the same process. What it asks for besides, at its start and for the session's title, is refused.
        command: "mkdir $HOME/left && cd $HOME/left && git init -q && OPENCODE_CONFIG_CONTENT='{ \"provider\": { \"test\": { \"npm\": \"@ai-sdk/openai-compatible\", \
                  \"options\": { \"baseURL\": \"https://{NAME}/v1\", \"apiKey\": \"x\" }, \"models\": { \"left\": {} } } } }' \
                  {OPENCODE} run --model test/left hello",
        words: "Cannot connect to API",
        tries: Tries::Always,
        ..CURL
    },
    Client {
        title: "Go: its own resolver",
        install: GO,
        prepare: GET_GO,
        version: "go version",
        command: "GODEBUG=netdns=go {BUILT}/get-go {NAME}",
        words: "no such host",
        ..CURL
    },
    Client {
        title: "Go: cgo",
        install: GO,
        prepare: GET_GO,
        version: "go version",
        command: "GODEBUG=netdns=cgo {BUILT}/get-go {NAME}",
        words: "no such host",
        ..CURL
    },
    Client {
        title: "Java",
        install: &[("javac", "default-jdk-headless")],
        prepare: "javac -d {BUILT} {PROGRAMS}/Get.java",
        version: "java --version",
        command: "java -cp {BUILT} Get {NAME}",
        words: "UnknownHostException",
        proof: Proof::Request(80),
        ..CURL
    },
    Client {
        title: "Gradle: a repository",
        install: &[("gradle", "gradle")],
        prepare: "cp {PROGRAMS}/build.gradle {BUILT}",
        version: "gradle --version",
        // In one process, which ends with it.
        command: "gradle -q --no-daemon -g $HOME/gradle -b {BUILT}/build.gradle -Phost={NAME} --project-cache-dir $HOME/cache get",
        words: "Name or service not known",
        proof: Proof::Request(80),
        ..CURL
    },
    Client {
        title: "Chromium: headless",
        install: &[("chromium", "chromium")],
        prepare: "",
        version: "chromium --version",
        // Its own sandbox is not for root.
        command: "chromium --headless --no-sandbox --disable-gpu --disable-background-networking --dump-dom http://{NAME}/ 2>&1 | grep -e reached -e net::",
        words: "net::ERR_NAME_NOT_RESOLVED",
        proof: Proof::Request(80),
        ..CURL
    },
    Client {
        title: "cargo: a registry's index",
        install: &[],
        prepare: "mkdir -p {BUILT}/crate/src && touch {BUILT}/crate/src/lib.rs && \
                  printf '[package]\\nname = \"one\"\\nedition = \"2021\"\\n[workspace]\\n[dependencies]\\nleft = { version = \"1\", registry = \"left\" }\\n' \
                  > {BUILT}/crate/Cargo.toml",
        version: "cargo --version",
        command: "cp -r {BUILT}/crate $HOME && cd $HOME/crate && \
                  CARGO_REGISTRIES_LEFT_INDEX=sparse+https://{NAME}/index/ cargo generate-lockfile",
        words: "Could not resolve host",
        tries: Tries::Unless("CARGO_NET_RETRY=0"),
        ..CURL
    },
    Client {
        title: "dig",
        install: &[("dig", "bind9-dnsutils")],
        version: "dig -v",
        command: "dig +search {NAME} | sed 's/, id: .*//'",
        words: "status: NXDOMAIN",
        proof: Proof::Answer,
        ..CURL
    },
    Client {
        title: "host",
        install: &[("host", "bind9-host")],
        version: "host -V",
        command: "host {NAME}",
        words: "not found: 3(NXDOMAIN)",
        proof: Proof::Answer,
        ..CURL
    },
];

const GO: &[(&str, &str)] = &[("go", "golang-go"), ("gcc", "gcc")];

const GET_GO: &str = "cd {PROGRAMS} && GOCACHE={BUILT}/go-cache GO111MODULE=off CGO_ENABLED=1 go build -o {BUILT}/get-go get.go";

const BUN: &str =
    "npm install --silent --no-save --ignore-scripts --prefix {BUILT}/bun @oven/bun-linux-{ARCH}@1.4.5";
