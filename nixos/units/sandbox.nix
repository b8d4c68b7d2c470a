# What a server and its scripts see of the machine, and what they may ask of the kernel: nothing that is not listed here.
{ lib }:
{
  instance,
  files,
  attachProgram,
  terminals,
  told,
  # What it shows to opencode-keys.service, to be reached there.
  tokens,
}:
let
  # Files that programs of all kinds need: who is who, how names are resolved, whom TLS trusts, what time it is, and the two
  # paths that scripts begin with. Where one is missing, programs do without it.
  common = [
    "/bin/sh"
    "/etc/group"
    "/etc/host.conf"
    "/etc/hosts"
    "/etc/localtime"
    "/etc/nsswitch.conf"
    "/etc/opencode/opencode.json"
    "/etc/opencode/opencode.jsonc"
    "/etc/passwd"
    "/etc/protocols"
    "/etc/resolv.conf"
    "/etc/services"
    "/etc/ssl/certs/ca-bundle.crt"
    "/etc/ssl/certs/ca-certificates.crt"
    "/etc/zoneinfo"
    "/usr/bin/env"
  ];
in
{
  # An empty root, read-only, into which what is needed is mounted. So neither ProtectSystem=, which would show the host's
  # root again, nor ProtectHome=: what they protect is not there.
  TemporaryFileSystem = [
    "/:ro"
    # Else systemd puts one here where everybody may write.
    "/run:ro"
    # PrivateDevices= leaves the host's, where everybody may write, and where instances could meet.
    "/dev/shm:mode=1777,size=${toString instance.resources.sharedMemoryMax}"
  ];
  BindReadOnlyPaths = [
    builtins.storeDir
  ]
  ++ map (path: "-${path}") common
  # For the `attach` that comes first, which runs in the same mounts: the program, and the daemon's directory, of root alone.
  ++ lib.optionals instance.networkIsolation.enable [
    attachProgram
    "-/run/opencode-egress"
  ]
  ++ [ "${files.package}:${files.at}" ]
  ++ lib.optional (told != null) (dirOf told)
  ++ tokens
  ++ files.outside
  ++ instance.sandbox.readOnlyPaths
  ++ instance.sandbox.unixSockets.allow;
  BindPaths = [
    instance.directory
    instance.stateDir
    "${terminals}:/dev/pts"
  ]
  ++ instance.sandbox.readWritePaths;
  InaccessiblePaths = [
    # What the kernel shows of policies there is root's, names included.
    "-/sys/fs/bpf"
    # With LogNamespace= systemd puts the sockets of that journal here. The standard streams are connected before.
    "-/run/systemd/journal"
  ];
  PrivateMounts = true;
  PrivateTmp = true;
  PrivateDevices = true;
  PrivateIPC = true;
  RemoveIPC = true;
  # Own files are the user's alone.
  UMask = "0077";

  # Of /proc, its own processes. Not ProcSubset=pid: runtimes size their heaps and pools by /proc/meminfo and /proc/cpuinfo.
  ProtectProc = "invisible";
  ProtectClock = true;
  # The second shows nothing of other units (systemd 257 and newer); an older systemd stays with the first.
  ProtectControlGroups = [
    "yes"
    "strict"
  ];
  ProtectHostname = true;
  ProtectKernelLogs = true;
  ProtectKernelModules = true;
  ProtectKernelTunables = true;

  # No privilege, and no way to one. Agents that use namespaces (bubblewrap, rootless containers) cannot.
  CapabilityBoundingSet = "";
  AmbientCapabilities = "";
  NoNewPrivileges = true;
  RestrictNamespaces = true;
  RestrictRealtime = true;
  RestrictSUIDSGID = true;
  LockPersonality = true;
  KeyringMode = "private";
  # IP and local sockets: nothing below IP, and no other family, which no policy would see.
  RestrictAddressFamilies = [
    "AF_UNIX"
    "AF_INET"
    "AF_INET6"
  ];
  SystemCallArchitectures = "native";
  SystemCallFilter = [
    "@system-service"
    # A key outlives the unit, and whoever is told its number may be let read it: another instance, too. io_uring (in @aio) makes
    # sockets, of every family, by no call that a filter sees, and the host has a limited number of asynchronous requests.
    "~@privileged @resources @keyring @aio"
  ];
  # An error, as programs expect, and not the end of the process.
  SystemCallErrorNumber = "EPERM";
  # Not MemoryDenyWriteExecute=: opencode's JavaScript engine compiles as it runs.
  # Not PrivateNetwork= or IPAddressDeny=: a server listens, and what it reaches is for `networkIsolation` to say.
  # Not PrivateUsers=: files of other users would all seem to be nobody's, which Git refuses.
}
