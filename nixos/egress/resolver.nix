# opencode-egress-resolver.service, as dist/opencode-egress-resolver.service has it, but for what xtask/src/units.rs lists.
{ lib, egress }:
{
  description = "Resolver of opencode servers that have names on their lists";
  after = [ "opencode-egress.service" ];
  # An upgrade restarts it in one step. What is asked meanwhile waits in the daemon's sockets.
  stopIfChanged = false;
  # Whatever made it fail, it is needed: without it no name is resolved.
  startLimitIntervalSec = 0;
  unitConfig.Documentation = "man:opencode-egress(1)";
  serviceConfig = import ../hardening.nix // {
    Type = "notify";
    ExecStart = import ../units/exec.nix { inherit lib; } [
      "${egress.package}/bin/opencode-egress"
      "resolve"
    ];
    Restart = "always";
    # Questions wait in the sockets meanwhile.
    RestartSec = "100ms";
    TimeoutStopSec = 10;
    WatchdogSec = 30;
    # Four sockets for each instance, and what is asked by them.
    LimitNOFILE = 65536;
    MemoryMax = "512M";

    # It reads what agents write: no user of the host's, no capability, no file to write.
    DynamicUser = true;
    CapabilityBoundingSet = "";
    ProtectHome = true;
    PrivateTmp = true;
    PrivateDevices = true;
    PrivateMounts = true;
    PrivateUsers = true;
    ProtectProc = "invisible";
    ProcSubset = "pid";
    ProtectKernelTunables = true;
    RemoveIPC = true;
    # The daemon's socket, and the resolvers that it asks.
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_INET"
      "AF_INET6"
    ];
    # By the last one it gives up by itself what it does not need.
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
      "seccomp"
    ];
  };
}
