# opencode-keys.service, as dist/opencode-keys.service has it, but for what xtask/src/units.rs lists; what answers while it does not run; and what reloads it.
{
  lib,
  pkgs,
  instances,
  keyed,
  textfile,
  configuration,
  list,
}:
let
  exec = import ../units/exec.nix { inherit lib; };
  nginx = lib.getExe' pkgs.nginx "nginx";
  load = "/etc/opencode-keys/load";
  count = "/etc/opencode-keys/count";
  gibibyte = 1073741824;
  credential = provider: "${provider.instance}.${provider.name}";

  hardening = import ../hardening.nix // {
    CapabilityBoundingSet = "";
    ProtectHome = true;
    PrivateTmp = true;
    PrivateDevices = true;
    PrivateMounts = true;
    PrivateIPC = true;
    PrivateUsers = true;
    ProtectProc = "invisible";
    ProcSubset = "pid";
    ProtectKernelTunables = true;
    RemoveIPC = true;
    KeyringMode = "private";
    RestrictAddressFamilies = "AF_UNIX";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources @keyring @aio"
    ];
  };

  serve = name: {
    Type = "forking";
    PIDFile = "/run/${name}/nginx.pid";
    RuntimeDirectory = name;
    # What root writes there is for the group to read.
    RuntimeDirectoryMode = "2700";
    User = "opencode-keys";
    Group = "opencode-keys";
    # Of every instance all the sockets that it may have by default, and as many to providers.
    LimitNOFILE = 131072;
    # Keys are in its memory.
    LimitCORE = 0;
    # Workers that a reload replaced stay for as long as they have a stream, up to an hour: four for each of a hundred reloads.
    TasksMax = 512;
  }
  // hardening
  // {
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_INET"
      "AF_INET6"
    ];
  };
in
{
  opencode-keys = {
    description = "Keys of opencode servers' providers";
    wantedBy = [ "multi-user.target" ];
    wants = [ "opencode-egress.service" ];
    after = [
      "network.target"
      "opencode-egress.service"
    ];
    reloadTriggers = [
      configuration
      list
    ];
    # An upgrade restarts it in one step.
    stopIfChanged = false;
    unitConfig = {
      # Clients are told at once, and do not try for a minute.
      OnFailure = "opencode-keys-gone.service";
      OnSuccess = "opencode-keys-gone.service";
    };
    serviceConfig = serve "opencode-keys" // {
      ExecStartPre = [
        "+${exec [ instances.attachProgram "attach" "--timeout" "60" "keys" ]}"
        "+${exec [ load "check" "/etc/opencode-keys/list" ]}"
        (exec [ load "start" "/etc/opencode-keys/list" ])
      ];
      ExecStart = exec [ nginx "-c" "/etc/opencode-keys/nginx.conf" "-e" "stderr" ];
      ExecReload = [
        "+${exec [ load "reload" "/etc/opencode-keys/list" ]}"
        # It says what it does not take; after a signal it only goes on as before.
        (exec [ nginx "-t" "-q" "-c" "/etc/opencode-keys/nginx.conf" "-e" "stderr" ])
        "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID"
      ];
      Restart = "always";
      # Requests that are read for their model are in memory: all of them fit.
      MemoryMax = toString (2 * gibibyte + keyed.bodies);
      OOMPolicy = "continue";
      # An agent that asks without end pushes nothing out of the host's journal.
      LogNamespace = "opencode-keys";
      LoadCredential = map (provider: "${credential provider}:${provider.keyFile}") keyed.providers;
      # Where a file is missing it is opencode-keys-load that says so, with what to do.
      SetCredential = map (provider: "${credential provider}:none") keyed.providers;
      # `attach` is root's.
      UnsetEnvironment = import ../units/loader-variables.nix;
    };
  };

  opencode-keys-gone = {
    description = "Answers of opencode-keys.service while it does not run";
    conflicts = [ "opencode-keys.service" ];
    # However often that tries to start, and stops this.
    startLimitIntervalSec = 0;
    unitConfig.ConditionPathExists = "/etc/opencode-keys/gone.conf";
    serviceConfig = serve "opencode-keys-gone" // {
      ExecStart = exec [ nginx "-c" "/etc/opencode-keys/gone.conf" "-e" "stderr" ];
      IPAddressDeny = "any";
      IPAddressAllow = "localhost";
    };
  };

  # Started by opencode-keys-reload.path and opencode-keys-reload.timer.
  opencode-keys-reload = {
    description = "Reads changed keys of opencode servers' providers";
    # However often they change.
    startLimitIntervalSec = 0;
    serviceConfig = removeAttrs hardening [ "PrivateTmp" "PrivateUsers" ] // {
      PrivateNetwork = true;
      Type = "oneshot";
      ExecStart = exec [ load "follow" "/etc/opencode-keys/list" ];
      RuntimeDirectory = "opencode-keys-reload";
      RuntimeDirectoryPreserve = true;
      # What it says of keys, and not that it ran.
      SyslogLevel = "warning";
      LogLevelMax = "notice";
      # Files may be anybody's, and instances' users are not to be able to read them.
      CapabilityBoundingSet = "CAP_DAC_READ_SEARCH CAP_SETUID CAP_SETGID";
      ProtectHome = "read-only";
      SystemCallFilter = hardening.SystemCallFilter ++ [ "@setuid capset" ];
    };
  };
}
// lib.optionalAttrs (textfile != null) {
  # Started by opencode-keys-count.timer.
  opencode-keys-count = {
    description = "Counts requests of opencode servers to their providers";
    serviceConfig = hardening // {
      PrivateNetwork = true;
      Type = "oneshot";
      ExecStart = exec [ count "/var/lib/opencode-keys-count" textfile ];
      SyslogLevel = "warning";
      LogLevelMax = "notice";
      StateDirectory = "opencode-keys-count";
      ReadWritePaths = [ (dirOf textfile) ];
    };
  };
}
