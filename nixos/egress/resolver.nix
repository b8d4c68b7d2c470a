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
  serviceConfig = {
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
    NoNewPrivileges = true;
    ProtectSystem = "strict";
    ProtectHome = true;
    PrivateTmp = true;
    PrivateDevices = true;
    PrivateMounts = true;
    DevicePolicy = "closed";
    PrivateUsers = true;
    ProtectProc = "invisible";
    ProcSubset = "pid";
    ProtectClock = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectControlGroups = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    RemoveIPC = true;
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    UMask = "0077";
    # The daemon's socket, and the resolvers that it asks.
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_INET"
      "AF_INET6"
    ];
    SystemCallArchitectures = "native";
    # By the last one it gives up by itself what it does not need.
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
      "seccomp"
    ];
    SystemCallErrorNumber = "EPERM";
  };
}
