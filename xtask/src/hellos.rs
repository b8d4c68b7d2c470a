//! `hellos`: real TLS hellos, each made by the program that it is of, for the tests of the reader that follows them in the kernel.
//!
//! A program is pointed at a proxy, or at a server, on loopback that keeps what it is sent and hangs up. Nothing leaves the machine.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{ensure as ensure_programs, fresh, root};

/// The server that each is to reach.
const NAME: &str = "hello.example.org";

/// For how long a program may take to send its hello.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program. In its commands stand `{NAME}` and `{PORT}` for where to, and `{BUILT}` for a directory of what is made for it.
struct Program {
    /// What makes the hello, and the file that has it.
    library: &'static str,
    file: &'static str,
    install: &'static [(&'static str, &'static str)],
    prepare: &'static str,
    version: &'static str,
    command: &'static str,
}

const GO: &str = r#"package main

import ("crypto/tls"; "os")

func main() {
	tls.Dial("tcp", "127.0.0.1:"+os.Args[2], &tls.Config{ServerName: os.Args[1]})
}
"#;

const JAVA: &str = r"import java.net.Socket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.SSLSocketFactory;

class Hello {
    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[1]);
        Socket plain = new Socket(`127.0.0.1`, port);
        SSLSocketFactory factory = (SSLSocketFactory) SSLSocketFactory.getDefault();
        ((SSLSocket) factory.createSocket(plain, arguments[0], port, true)).startHandshake();
    }
}
";

const PROGRAMS: &[Program] = &[
    Program {
        library: "OpenSSL",
        file: "openssl",
        install: &[("openssl", "openssl")],
        prepare: "",
        version: "openssl version",
        command: "openssl s_client -connect 127.0.0.1:{PORT} -servername {NAME}",
    },
    Program {
        library: "OpenSSL, for TLS 1.2 alone",
        file: "openssl-tls12",
        install: &[("openssl", "openssl")],
        prepare: "",
        version: "openssl version",
        command: "openssl s_client -connect 127.0.0.1:{PORT} -servername {NAME} -tls1_2",
    },
    Program {
        library: "OpenSSL in Node.js",
        file: "node",
        install: &[("node", "nodejs")],
        prepare: "",
        version: "node -p process.versions.openssl",
        command: "node -e 'require(\"tls\").connect({ host: \"127.0.0.1\", port: {PORT}, servername: \"{NAME}\" })'",
    },
    Program {
        library: "GnuTLS",
        file: "gnutls",
        install: &[("gnutls-cli", "gnutls-bin")],
        prepare: "",
        version: "gnutls-cli --version | head -1",
        command: "gnutls-cli --insecure --sni-hostname {NAME} --port {PORT} 127.0.0.1",
    },
    Program {
        library: "NSS",
        file: "nss",
        install: &[("tstclnt", "libnss3-tools")],
        prepare: "mkdir {BUILT}/nss && certutil -N --empty-password -d {BUILT}/nss",
        version: "dpkg-query -W -f '${Version}' libnss3",
        command: "tstclnt -h 127.0.0.1 -p {PORT} -a {NAME} -d {BUILT}/nss -o",
    },
    Program {
        library: "Go's crypto/tls",
        file: "go",
        install: &[("go", "golang-go")],
        prepare: "cd {BUILT} && GOFLAGS=-mod=mod GOCACHE={BUILT}/go-cache go build -o hello-go hello.go",
        version: "go version",
        command: "{BUILT}/hello-go {NAME} {PORT}",
    },
    Program {
        library: "Java",
        file: "java",
        install: &[("javac", "default-jdk-headless")],
        prepare: "javac -d {BUILT} {BUILT}/Hello.java",
        version: "java --version | head -1",
        command: "java -cp {BUILT} Hello {NAME} {PORT}",
    },
    Program {
        library: "rustls, in uv",
        file: "rustls",
        install: &[("pip3", "python3-pip")],
        prepare: "pip3 install --quiet --root-user-action ignore --target {BUILT}/uv uv",
        version: "{BUILT}/uv/bin/uv --version",
        command: "HTTPS_PROXY=http://127.0.0.1:{PORT} UV_HTTP_RETRIES=0 {BUILT}/uv/bin/uv pip download --dry-run x --index-url https://{NAME}/ || HTTPS_PROXY=http://127.0.0.1:{PORT} UV_HTTP_RETRIES=0 {BUILT}/uv/bin/uv pip install --target {BUILT}/none x --index-url https://{NAME}/",
    },
    Program {
        library: "BoringSSL, in Bun",
        file: "boringssl-bun",
        install: &[("npm", "npm")],
        prepare: "npm install --silent --no-save --ignore-scripts --prefix {BUILT}/bun @oven/bun-linux-$(uname -m | sed s/x86_64/x64/)@1.4.5",
        version: "echo Bun $({BUILT}/bun/node_modules/@oven/bun-linux-*/bin/bun --version)",
        command: "{BUILT}/bun/node_modules/@oven/bun-linux-*/bin/bun -e 'await fetch(\"https://127.0.0.1:{PORT}/\", { tls: { serverName: \"{NAME}\", rejectUnauthorized: false }, headers: { Host: \"{NAME}\" } })'",
    },
    Program {
        library: "BoringSSL, in Chromium",
        file: "boringssl-chromium",
        install: &[("chromium", "chromium")],
        prepare: "",
        version: "chromium --version --no-sandbox",
        command: "chromium --headless --no-sandbox --disable-gpu --user-data-dir={BUILT}/chromium --disable-background-networking --disable-component-update --host-resolver-rules='MAP {NAME} 127.0.0.1:{PORT},MAP * ~NOTFOUND' --dump-dom https://{NAME}/",
    },
];

/// Which of them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Those whose file has this in its name; all by default
    names: Vec<String>,
}

/// Has each send its hello, and writes it where the tests find it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let built = root().join("target/hellos");
    fresh(&built)?;
    fs::write(built.join("hello.go"), GO)?;
    fs::write(built.join("Hello.java"), JAVA.replace('`', "\""))?;
    let wanted = |program: &&Program| {
        args.names.is_empty() || args.names.iter().any(|name| program.file.contains(name.as_str()))
    };
    let mut failed = 0;
    for program in PROGRAMS.iter().filter(wanted) {
        match capture(program, &built) {
            Ok(length) => println!("ok     {}: {length} bytes", program.library),
            Err(error) => {
                println!("FAILED {}: {error:#}", program.library);
                failed += 1;
            }
        }
    }
    ensure!(failed == 0, "{failed} programs sent no hello");
    Ok(())
}

/// Where the tests' hellos are.
fn place() -> PathBuf {
    root().join("opencode-egress-common/src/hello/tests/real")
}

fn capture(program: &Program, built: &std::path::Path) -> Result<usize> {
    ensure_programs(program.library, program.install)?;
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    let port = listener.local_addr()?.port().to_string();
    let fill = |command: &str| {
        let built = built.display().to_string();
        command.replace("{NAME}", NAME).replace("{PORT}", &port).replace("{BUILT}", &built)
    };
    if !program.prepare.is_empty() {
        let prepared = shell(&fill(program.prepare)).output()?;
        ensure!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
    }
    let version = shell(&fill(program.version)).output()?.stdout;
    let version = String::from_utf8_lossy(&version).trim().to_owned();
    let mut child = shell(&fill(program.command)).stdin(Stdio::piped()).spawn()?;
    let hello = take(&listener, &mut child);
    // It may have ended, or may wait for an answer.
    let _ = child.kill();
    let _ = child.wait();
    let hello = hello?;
    let mut text = format!("# {}: {version}\n# {}\n", program.library, program.command);
    for line in hello.chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}")?;
        }
        text.push('\n');
    }
    fs::create_dir_all(place())?;
    fs::write(place().join(format!("{}.txt", program.file)), text)?;
    // What fuzzing begins with.
    fs::write(root().join("fuzz/seeds/hello").join(program.file), &hello)?;
    Ok(hello.len())
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec 3<&0; {{ {command}\n}} <&3")]);
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// Takes the hello of a connection, which may be one to a proxy.
fn take(listener: &TcpListener, child: &mut Child) -> Result<Vec<u8>> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        if let Some(hello) = read_hello(stream) {
            return Ok(hello);
        }
    }
    let _ = child.kill();
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    bail!("no hello came; it said: {said}")
}

/// Every record of the hello's message. `None`: it is none to this server.
fn read_hello(mut stream: TcpStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 5];
    stream.read_exact(&mut bytes).ok()?;
    if bytes.starts_with(b"CONNE") {
        while !bytes.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            bytes.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
        bytes = vec![0; 5];
        stream.read_exact(&mut bytes).ok()?;
    }
    let (mut message, mut at) = (vec![], 0);
    loop {
        let length = usize::from(u16::from_be_bytes([bytes[at + 3], bytes[at + 4]]));
        let begin = bytes.len();
        bytes.resize(begin + length, 0);
        stream.read_exact(&mut bytes[begin..]).ok()?;
        message.extend_from_slice(&bytes[begin..]);
        let whole =
            4 + usize::from(message[1]) * 65_536 + usize::from(message[2]) * 256 + usize::from(message[3]);
        if message.len() >= whole {
            break;
        }
        at = bytes.len();
        bytes.resize(at + 5, 0);
        stream.read_exact(&mut bytes[at..]).ok()?;
    }
    let is_named = bytes.windows(NAME.len()).any(|part| part == NAME.as_bytes());
    (bytes[0] == 22 && is_named).then_some(bytes)
}
