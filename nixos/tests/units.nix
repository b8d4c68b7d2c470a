# What instances become: units. files.nix has the rest.
{ lib, host }:
let
  inherit (lib) attrNames elem genAttrs hasPrefix head;
  is = got: expected: { inherit got expected; };
  isolation.networkIsolation.enable = true;
  # A script without its first line, which names the shell.
  body = script: lib.trim (lib.concatStringsSep "\n" (lib.tail (lib.splitString "\n" script.text)));

  # What a unit is made of.
  unit =
    name: config:
    lib.getAttrs [
      "after"
      "environment"
      "path"
      "reloadTriggers"
      "requires"
      "restartTriggers"
      "serviceConfig"
      "stopIfChanged"
      "unitConfig"
      "wantedBy"
      "wants"
    ] config.systemd.services.${name};
  server = unit "opencode-a";
  setup = unit "opencode-a-setup";
  settings = instance: (server (host.one instance)).serviceConfig;
  command = instance: (settings instance).ExecStart;
  base = "/nix/store/opencode/bin/opencode serve --hostname 127.0.0.1 --port 4096 --print-logs --log-level INFO";
  attach = "+/etc/opencode-egress/opencode-egress attach --timeout 60 a";
in
{
  "nothing without enable" =
    let
      config = host.config [
        { services.opencode.enable = lib.mkForce false; }
        (host.called "a" ({ directory = "/srv/a"; } // isolation))
      ];
    in
    is
      {
        services = host.services config;
        users = lib.filter (hasPrefix "opencode-") (attrNames config.users.users);
        directories = lib.filter (lib.hasInfix "opencode") config.systemd.tmpfiles.rules;
        tables = config.networking.nftables.tables ? opencode-egress;
        etc = lib.filter (hasPrefix "opencode") (attrNames config.environment.etc);
      }
      {
        services = [ ];
        users = [ ];
        directories = [ ];
        tables = false;
        etc = [ ];
      };
  "no daemon without isolation" = is (host.services (host.one { })) [
    "opencode-a"
    "opencode-a-backup"
    "opencode-a-paths"
    "opencode-a-setup"
  ];

  "the command" = is (command { }) base;
  "every flag, and extraArgs last" =
    is
      (command {
        listen.address = "::1";
        listen.port = 8080;
        logLevel = "DEBUG";
        cors = [
          "https://a.example"
          "https://b.example"
        ];
        mdns = true;
        mdnsDomain = "x.local";
        pure = true;
        extraArgs = [
          "--port"
          "1"
        ];
      })
      "/nix/store/opencode/bin/opencode serve --hostname ::1 --port 8080 --print-logs --log-level DEBUG --cors=https://a.example --cors=https://b.example --mdns --mdns-domain x.local --pure --port 1";
  "words are quoted" = is (command { extraArgs = [ "a b" "50%" "$HOME" "\"" "" ]; }) (
    base + " \"a b\" \"50%%\" \"$$HOME\" \"\\\"\" \"\""
  );

  "attach comes first in both units" =
    let
      config = host.config [
        (host.called "a" ({ directory = "/srv/a"; } // isolation))
        { systemd.services.opencode-a.serviceConfig.ExecStartPre = [ "/bin/other" ]; }
        { systemd.services.opencode-a-setup.serviceConfig.ExecStartPre = lib.mkBefore [ "/bin/other" ]; }
      ];
    in
    is
      {
        server = (server config).serviceConfig.ExecStartPre;
        setup = lib.filter (command: !host.isTableCheck command) (setup config).serviceConfig.ExecStartPre;
      }
      {
        server = [
          attach
          "/bin/other"
        ];
        setup = [
          attach
          "/bin/other"
        ];
      };
  "the daemon is wanted by the server and required by its setup" =
    let
      config = host.one isolation;
      pick = service: { inherit (service) wants requires after; };
    in
    is
      {
        server = pick (server config);
        setup = pick (setup config);
      }
      {
        server = {
          wants = [ "opencode-egress.service" ];
          requires = [ "opencode-a-setup.service" ];
          after = [
            "network.target"
            "opencode-a-setup.service"
            "opencode-egress.service"
          ];
        };
        setup = {
          wants = [ ];
          requires = [
            "opencode-egress.service"
            "nftables.service"
            "opencode-a-paths.service"
          ];
          after = [
            "network.target"
            "opencode-egress.service"
            "nftables.service"
            "opencode-a-paths.service"
          ];
        };
      };
  "another version of the daemon changes no server, and the program is where the units have it" =
    let
      version = package: host.config [
        (host.called "a" ({ directory = "/srv/a"; } // isolation))
        {
          services.opencode.egress.package = {
            type = "derivation";
            name = package;
            outPath = "/nix/store/${package}";
          };
        }
      ];
      units = config: {
        server = server config;
        setup = setup config;
      };
      program = config: config.environment.etc."opencode-egress/opencode-egress".source;
      old = version "old";
      new = version "new";
    in
    is
      {
        same = units old == units new;
        daemons = unit "opencode-egress" old == unit "opencode-egress" new;
        programs = map program [
          old
          new
        ];
        seen = elem "/etc/opencode-egress/opencode-egress" (server new).serviceConfig.BindReadOnlyPaths;
      }
      {
        same = true;
        daemons = false;
        programs = [
          "/nix/store/old/bin/opencode-egress"
          "/nix/store/new/bin/opencode-egress"
        ];
        seen = true;
      };
  "a changed policy changes no server" = is (server (host.one isolation)) (
    server (
      host.one {
        networkIsolation = {
          enable = true;
          mode = "audit";
          outboundAllowCidrs = [ "10.0.0.0/8" ];
          outboundDenyCidrs = [ "10.9.0.0/16" ];
        };
      }
    )
  );
  "a changed script restarts the server" =
    is (map body (lib.take 1 (server (host.one { preInitScript = "true"; })).restartTriggers)) [
      "set -eu\ntrue"
    ];
  "neither attach nor daemon without isolation" = is {
    pre = (settings { }) ? ExecStartPre;
    inherit (server (host.one { })) wants;
    socket = elem "-/run/opencode-egress" (settings { }).BindReadOnlyPaths;
    program = elem "/etc/opencode-egress/opencode-egress" (settings { }).BindReadOnlyPaths;
    unset = (settings { }) ? UnsetEnvironment;
  } {
    pre = false;
    wants = [ ];
    socket = false;
    program = false;
    unset = false;
  };
  "what would be loaded into attach is unset, in both units" =
    let
      config = host.one (
        isolation
        // {
          sandbox.extraConfig = {
            UnsetEnvironment = "X";
            EnvironmentFile = "/x";
            Environment = "LD_PRELOAD=/srv/a/x.so";
          };
        }
      );
      unset = unit: lib.all (name: elem name unit.serviceConfig.UnsetEnvironment) [
        "LD_PRELOAD"
        "LD_LIBRARY_PATH"
        "LD_AUDIT"
        "GCONV_PATH"
      ];
    in
    is
      {
        server = unset (server config);
        setup = unset (setup config);
        file = (server config).serviceConfig ? EnvironmentFile;
        path = elem "PATH" (server config).serviceConfig.UnsetEnvironment;
      }
      {
        server = true;
        setup = true;
        file = false;
        path = false;
      };

  "hooks are around the setup" =
    is
      (map (script: script.name)
        (setup (
          host.one {
            preInitScript = "true";
            postInitScript = "true";
          }
        )).serviceConfig.ExecStart
      )
      [
        "opencode-a-pre-init"
        "opencode-a-setup"
        "opencode-a-post-init"
      ];
  "a hook stops at its first error" =
    is (body (head (setup (host.one { preInitScript = "false\ntrue"; })).serviceConfig.ExecStart))
      "set -eu\nfalse\ntrue";
  "the setup is as hardened as the server" =
    let
      unit = instance: {
        server = removeAttrs (server instance).serviceConfig [
          "ExecStart"
          "Type"
          "Restart"
          "RestartSec"
          "OOMPolicy"
          "KillMode"
        ];
        setup =
          lib.mapAttrs
            (key: value: if key == "ExecStartPre" then lib.filter (command: !host.isTableCheck command) value else value)
            (
              removeAttrs (setup instance).serviceConfig [
                "ExecStart"
                "Type"
              ]
            );
      };
      units = unit (host.one isolation);
    in
    is units.setup units.server;

  "the environment, the instance's before the module's" =
    is
      (removeAttrs
        (server (
          host.one {
            environment = {
              HOME = "/elsewhere";
              X = "1";
            };
          }
        )).environment
        [
          "PATH"
          "SHELL"
        ]
      )
      {
        HOME = "/elsewhere";
        OPENCODE_DISABLE_AUTOUPDATE = "1";
        X = "1";
      };
  "a value of the environment is what it is, in both units" =
    let
      config = host.one { environment.PROXY = "http://me%40x:50%25$@proxy"; };
    in
    is (map (unit: (unit config).environment.PROXY) [
      server
      setup
    ]) (lib.replicate 2 "http://me%%40x:50%%25$@proxy");
  "its files, in their order" =
    is
      (settings {
        environmentFile = "/run/one";
        environmentFiles = [
          "/run/two"
          "/run/three"
        ];
      }).EnvironmentFile
      [
        "/run/one"
        "/run/two"
        "/run/three"
      ];
  "both units have them" = is (setup (host.one { environmentFile = "/run/one"; })).serviceConfig.EnvironmentFile [
    "/run/one"
  ];
  "home is the state directory" = is (server (host.one { stateDir = "/var/lib/x"; })).environment.HOME "/var/lib/x";

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
