# What instances become: units. units-limits.nix has how these are held, files.nix the rest.
{ lib, host }:
let
  inherit (lib) attrNames elem hasPrefix head;
  inherit (import ./unit.nix { inherit lib host; }) server settings setup unit;
  is = got: expected: { inherit got expected; };
  isolation.networkIsolation.enable = true;
  # A script without its first line, which names the shell.
  body = script: lib.trim (lib.concatStringsSep "\n" (lib.tail (lib.splitString "\n" script.text)));

  command = instance: (settings instance).ExecStart;
  base = "/nix/store/opencode/bin/opencode serve --hostname 127.0.0.1 --port 4096 --print-logs --log-level INFO";
  attach = "+/etc/opencode-egress/bin/opencode-egress attach --timeout 60 a";
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
      program = config: config.environment.etc."opencode-egress/bin/opencode-egress".source;
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
        seen = elem "/etc/opencode-egress/bin/opencode-egress" (server new).serviceConfig.BindReadOnlyPaths;
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
    program = elem "/etc/opencode-egress/bin/opencode-egress" (settings { }).BindReadOnlyPaths;
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
}
