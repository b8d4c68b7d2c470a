# How units are held: to resources, to what they may see and call, and to their policy.
{ lib, host }:
let
  inherit (lib) elem genAttrs head;
  inherit (import ./unit.nix { inherit lib host; }) server settings setup;
  is = got: expected: { inherit got expected; };
  isolation.networkIsolation.enable = true;
  attach = "+/etc/opencode-egress/bin/opencode-egress attach --timeout 60 a";
in
{
  "resources" =
    is
      (lib.getAttrs [ "MemoryMax" "MemoryHigh" "CPUQuota" "CPUWeight" "TasksMax" ] (settings {
        resources = {
          memoryMax = "4G";
          memoryHigh = "3G";
          cpuQuota = "200%";
          cpuWeight = 50;
          tasksMax = 512;
        };
      }))
      {
        MemoryMax = "4G";
        MemoryHigh = "3G";
        CPUQuota = "200%";
        CPUWeight = 50;
        TasksMax = 512;
      };
  "limits by themselves, in both units" =
    let
      limits = unit: lib.getAttrs [ "MemoryMax" "TasksMax" "LimitNOFILE" "LimitCORE" "TimeoutStopSec" ] unit.serviceConfig;
    in
    is
      (map (unit: limits (unit (host.one { }))) [
        server
        setup
      ])
      (
        lib.replicate 2 {
          MemoryMax = "75%";
          TasksMax = 4096;
          LimitNOFILE = "1024:65536";
          LimitCORE = 0;
          TimeoutStopSec = 20;
        }
      );
  "no limit, when asked for none" = is (lib.intersectAttrs (genAttrs [ "MemoryMax" "CPUQuota" "TasksMax" ] (_: null)) (
    settings {
      resources = {
        memoryMax = null;
        tasksMax = null;
      };
    }
  )) { };
  "its own terminals, shared memory and journal" =
    let
      config = host.one {
        resources = {
          terminalsMax = 8;
          sharedMemoryMax = "64M";
          journalMax = "16M";
        };
      };
    in
    is
      {
        mount = lib.getAttrs [ "where" "options" ] (head config.systemd.mounts);
        shared = elem "/dev/shm:mode=1777,size=64M" (server config).serviceConfig.TemporaryFileSystem;
        journal = config.environment.etc."systemd/journald@opencode-a.conf".source.text;
        namespaces = map (unit: (unit config).serviceConfig.LogNamespace) [
          server
          setup
          (config: config.systemd.services.opencode-a-backup)
        ];
      }
      {
        mount = {
          where = "/run/opencode/pts/a";
          options = "max=8,mode=0600,ptmxmode=0666,nosuid,noexec";
        };
        shared = true;
        journal = "[Journal]\nSystemMaxUse=16M\nRuntimeMaxUse=16M\n";
        namespaces = lib.replicate 3 "opencode-a";
      };
  "a server that starts again and again waits for no limit of its journal's" = is
    {
      inherit ((host.one { }).systemd.services."systemd-journald-sync@") overrideStrategy;
      limit = (host.one { }).systemd.services."systemd-journald-sync@".unitConfig.StartLimitIntervalSec;
    }
    {
      overrideStrategy = "asDropin";
      limit = 0;
    };
  "a backup has no network and sees nothing but the state" =
    let
      backup = (host.one (isolation // { sandbox.readWritePaths = [ "/srv/rw" ]; })).systemd.services.opencode-a-backup;
    in
    is
      (lib.getAttrs [ "User" "PrivateNetwork" "RestrictAddressFamilies" "BindPaths" "SystemCallFilter" "StandardOutput" ]
        backup.serviceConfig
      )
      {
        User = "opencode-a";
        PrivateNetwork = true;
        RestrictAddressFamilies = "none";
        BindPaths = [
          "/var/lib/opencode/instance-state/a"
          "/var/lib/opencode/backup"
          "/run/opencode/pts/a:/dev/pts"
        ];
        inherit (settings { }) SystemCallFilter;
        StandardOutput = "file:/var/lib/opencode/backup/a.tar.gz.part";
      };

  "only the instance's own directories are writable" = is (settings { }).BindPaths [
    "/srv/a"
    "/var/lib/opencode/instance-state/a"
    "/run/opencode/pts/a:/dev/pts"
  ];
  "no keyrings, and no rings that make sockets" = is (elem "~@privileged @resources @keyring @aio" (settings { })
    .SystemCallFilter
  ) true;
  "a filter of one's own brings no rings back, under isolation" =
    let
      filter = settings: (server (host.one (settings // { sandbox.extraConfig.SystemCallFilter = "@system-service"; })))
        .serviceConfig.SystemCallFilter;
    in
    is
      {
        isolated = filter isolation;
        open = filter { };
      }
      {
        isolated = [
          "@system-service"
          "~@aio"
        ];
        open = "@system-service";
      };
  "the root is empty and read-only" = is (settings { }).TemporaryFileSystem [
    "/:ro"
    "/run:ro"
    "/dev/shm:mode=1777,size=1G"
  ];
  "paths and sockets that are let in" =
    let
      unit = settings {
        sandbox = {
          readWritePaths = [ "/srv/rw" ];
          readOnlyPaths = [ "/srv/ro" ];
          unixSockets.allow = [ "/run/x.sock" ];
        };
      };
    in
    is
      {
        rw = elem "/srv/rw" unit.BindPaths;
        ro = elem "/srv/ro" unit.BindReadOnlyPaths && elem "/run/x.sock" unit.BindReadOnlyPaths;
        not = elem "/srv/ro" unit.BindPaths || elem "/run/x.sock" unit.BindPaths;
      }
      {
        rw = true;
        ro = true;
        not = false;
      };
  "extraConfig has the last word" =
    is
      (lib.getAttrs [ "ProtectProc" "BindPaths" "Restart" ] (settings {
        sandbox.extraConfig = {
          ProtectProc = "default";
          BindPaths = [ "/x" ];
          Restart = "no";
        };
      }))
      {
        ProtectProc = "default";
        BindPaths = [ "/x" ];
        Restart = "no";
      };
  "extraConfig does not undo the policy" =
    is
      (lib.getAttrs [ "ExecStartPre" "CapabilityBoundingSet" "User" "RestrictAddressFamilies" ] (
        settings (
          isolation
          // {
            sandbox.extraConfig = {
              ExecStartPre = [ "" ];
              CapabilityBoundingSet = "~";
              User = "root";
              RestrictAddressFamilies = "~AF_UNIX";
              Slice = "x.slice";
              Delegate = true;
            };
          }
        )
      ))
      {
        ExecStartPre = [ attach ];
        CapabilityBoundingSet = "";
        User = "opencode-a";
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
      };
  "extraConfig neither moves nor delegates the cgroup" =
    is
      (lib.intersectAttrs (genAttrs [ "Slice" "Delegate" ] (_: null)) (
        settings (
          isolation
          // {
            sandbox.extraConfig = {
              Slice = "x.slice";
              Delegate = true;
            };
          }
        )
      ))
      { };
  "groups" = is (settings { extraGroups = [ "x" ]; }).SupplementaryGroups [ "x" ];

}
