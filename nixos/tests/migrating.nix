# Hosts as albertov/opencode-nix takes them, and what docs/migrating.md has to write instead.
{ lib, host }:
let
  inherit (import ./said.nix { inherit lib host; }) fails warns;
  opencode = import ../opencode-json {
    inherit lib;
    writeText = name: text: {
      type = "derivation";
      inherit name text;
      outPath = "/nix/store/${name}";
    };
  };

  # What needs no change.
  asItWas = {
    directory = "/srv/a";
    listen.port = 8080;
    environment.TEAM = "a";
    environmentFile = "/run/secrets/a";
    logLevel = "warn";
    sandbox.readOnlyPaths = [ "/srv/reference" ];
    sandbox.unixSockets.allow = [ "/run/postgresql/.s.PGSQL.5432" ];
    config = {
      model = "anthropic/claude-sonnet-4-5";
      permission = {
        "*" = "deny";
        read = "allow";
        external_directory."/tmp/**" = "allow";
      };
      agent.chief.primary = true;
      lsp = false;
    };
    postInitScript = "echo ready";
  };
in
{
  "a server of theirs is one of ours" = {
    got = {
      inherit (host.one asItWas) warnings;
      failures = host.failures (host.one asItWas);
    };
    expected = {
      warnings = [ ];
      failures = [ ];
    };
  };
  "so is one with a configuration from a list of modules" = {
    got =
      (host.one {
        configFile = opencode.mkOpenCodeConfig [
          { opencode.model = "p/m"; }
          { opencode.permission.bash = "deny"; }
        ];
      }).environment.etc."opencode-instances/a".source.entries."opencode.json";
    expected = "/nix/store/opencode.json";
  };
  "model and provider" =
    fails
      (host.one {
        model = "claude-sonnet-4-5";
        provider = "anthropic";
      })
      [ "instances.a: `model` and `provider`" "instances.a.config.model = \"anthropic/claude-sonnet-4-5\"" ]
      (host.one { config.model = "anthropic/claude-sonnet-4-5"; });
  "model with its provider" =
    fails (host.one { model = "anthropic/claude-sonnet-4-5"; })
      [ "instances.a.config.model = \"anthropic/claude-sonnet-4-5\"" ]
      (host.one { });
  "in the defaults" =
    fails
      (host.config [
        {
          services.opencode.defaults.model = "p/m";
          services.opencode.instances.a.directory = "/srv/a";
        }
      ])
      [ "instances.a.config.model = \"p/m\"" ]
      (host.one { });
  "the group that all had" =
    # A user that the module makes would be without its group, which NixOS says as well.
    fails
      (host.one {
        user = "alice";
        group = "opencode";
      })
      [ "instances.a.group" "users.groups" ]
      (
        host.config [
          { users.groups.opencode = { }; }
          (host.called "a" {
            directory = "/srv/a";
            group = "opencode";
          })
        ]
      );
  "a user of another name" =
    fails (host.one { user = "coder"; }) [ "instances.a.user" "users.users" ] (
      host.config [
        {
          users.users.coder = {
            isSystemUser = true;
            group = "developers";
          };
        }
        (host.called "a" {
          directory = "/srv/a";
          user = "coder";
        })
      ]
    );
  "both a file and a configuration" =
    fails
      (host.one {
        config.model = "p/m";
        configFile = "/run/secrets/opencode.json";
      })
      [ "instances.a.config" "configFile" ]
      (host.one { configFile = "/run/secrets/opencode.json"; });
  "isolation beside the host's firewall" =
    let
      beside =
        enable:
        host.config [
          { networking.firewall.enable = lib.mkForce enable; }
          (host.called "a" {
            directory = "/srv/a";
            networkIsolation.enable = true;
          })
        ];
    in
    fails (beside true) [ "networking.firewall.enable" ] (beside false);
  "what their defaults said in vain holds" =
    warns
      (host.config [
        {
          services.opencode.defaults = {
            openFirewall = true;
            listen.address = "0.0.0.0";
          };
          services.opencode.instances.a.directory = "/srv/a";
        }
      ])
      [ "OPENCODE_SERVER_PASSWORD" ]
      (host.one { });
}
