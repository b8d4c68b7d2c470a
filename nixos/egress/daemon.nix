# opencode-egress.service, as dist/opencode-egress.service has it, but for what xtask/src/units.rs lists.
{
  lib,
  egress,
  policyFile,
}:
let
  inherit (lib) optionals;
  exec = import ../units/exec.nix { inherit lib; };
  program = "${egress.package}/bin/opencode-egress";
  # A metrics address that is no path is a TCP port on loopback.
  socketDirectory = lib.optional (egress.metrics != null && lib.hasPrefix "/" egress.metrics) (dirOf egress.metrics);

  hardening = import ../hardening.nix // {
    # Load, attach and read maps; no more, above all not CAP_SYS_ADMIN.
    CapabilityBoundingSet = [
      "CAP_BPF"
      "CAP_PERFMON"
      "CAP_NET_ADMIN"
    ];
    # Read-only but for its own directory below /run and the pins. Not ProtectKernelTunables=, which makes the pins
    # read-only too.
    ReadOnlyPaths = [
      "/proc"
      "/sys"
      "/run"
    ];
    # Without the socket's directory there are no metrics, and the daemon says so; the servers are not to wait for it.
    ReadWritePaths = [ "/sys/fs/bpf" ] ++ map (directory: "-${directory}") socketDirectory;
    InaccessiblePaths = [
      "/dev/shm"
      "/dev/mqueue"
    ];
    ProtectHome = true;
    PrivateTmp = true;
    PrivateDevices = true;
    # No network but loopback: metrics, and the sockets that instances ask names at, which are the resolver's to read but stay in this cgroup. It is in the
    # host's namespace to reset connections there, too, by netlink.
    # Not ProtectProc=: which unit a caller belongs to is read in /proc.
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_NETLINK"
      "AF_INET"
      "AF_INET6"
    ];
    IPAddressDeny = "any";
    IPAddressAllow = "localhost";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
      "bpf"
    ];
  };
in
{
  description = "Egress control for opencode servers";
  wantedBy = [ "multi-user.target" ];
  # It starts without, and instances then resolve no name.
  wants = [ "opencode-egress-resolver.service" ];
  # A changed policy is a reload: the servers go on, and so does the daemon.
  reloadTriggers = [ policyFile ];
  # An upgrade restarts it in one step; the servers stay confined by what is pinned.
  stopIfChanged = false;
  # Whatever made it fail, it is needed: no instance starts without it.
  startLimitIntervalSec = 0;
  unitConfig = {
    Documentation = "man:opencode-egress(1)";
    # With `direct`, what waits would wait for ever: it is told after a minute, and fails. The daemon is tried again all the same.
    JobRunningTimeoutSec = 60;
  };
  serviceConfig = {
    Type = "notify";
    ExecStart = exec (
      [
        program
        "run"
        "--config"
        "/etc/opencode-egress/policy.json"
      ]
      ++ optionals (egress.metrics != null) [
        "--metrics"
        egress.metrics
      ]
    );
    ExecReload = exec [
      program
      "reload"
    ];
    Restart = "always";
    RestartSec = 1;
    # A start that fails and is tried again is no failure to the set-ups that require it: they would not be tried again, and
    # Restart= of the servers does not help those that never started. (systemd 254 and newer.)
    RestartMode = "direct";
    WatchdogSec = 30;
    RuntimeDirectory = "opencode-egress";
    # The resolver, which is no user of the host's, reaches its socket there. The others are root's alone by themselves.
    RuntimeDirectoryMode = "0711";
    RuntimeDirectoryPreserve = "yes";
    # Before Linux 5.11 maps count as locked memory. Each policy's rules are an open file.
    LimitMEMLOCK = "infinity";
    LimitNOFILE = 65536;
    # Where instances ask names: four sockets for each, which keep what was asked while the daemon or the resolver is restarted.
    FileDescriptorStoreMax = 8192;
    # Denials have limits of their own, for each instance, and what they leave out is counted; what journald drops is not.
    # (An interval of 0 is journald's default to systemd 252, which lets through some tens of thousands in half a minute.)
    LogRateLimitIntervalSec = "1s";
    LogRateLimitBurst = 1000000;
    # Under pressure the kernel should take an agent, not the one that watches it.
    OOMScoreAdjust = -900;
  }
  // hardening;
}
