# opencode-keys.service: nginx, between instances and their providers, which has the keys.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  instances = import ../instances.nix { inherit config lib; };
  inherit (config.services.opencode.keys) textfile;
  keyed = import ./keyed.nix { inherit config lib; };
  nginx = import ./nginx.nix { inherit lib; };
  runtime = name: "/run/${name}";

  file = name: text: pkgs.writeText name text;
  configuration = file "opencode-keys-nginx.conf" (
    nginx.config {
      runtime = runtime "opencode-keys";
      trusted = "/etc/ssl/certs/ca-certificates.crt";
      resolver = "127.0.0.53";
      instances = keyed.nginxInstances;
    }
  );
  gone = file "opencode-keys-gone.conf" (
    nginx.gone {
      runtime = runtime "opencode-keys-gone";
      ports = lib.attrValues keyed.ports;
    }
  );
  # What the packages of other systems have as well.
  load = pkgs.writeShellScript "opencode-keys-load" ''
    PATH=${
      lib.makeBinPath [
        pkgs.coreutils
        pkgs.systemd
        pkgs.util-linux
      ]
    }
    ${builtins.readFile ../../dist/opencode-keys-load}'';
  count = pkgs.writeShellScript "opencode-keys-count" ''
    PATH=${
      lib.makeBinPath [
        pkgs.coreutils
        pkgs.gawk
        pkgs.gnugrep
        pkgs.gnused
        pkgs.systemd
      ]
    }
    ${builtins.readFile ../../dist/opencode-keys-count}'';
  list = file "opencode-keys-list" keyed.list;
  services = import ./units.nix {
    inherit
      lib
      pkgs
      instances
      keyed
      textfile
      configuration
      list
      ;
  };
  changed = import ../units/changed.nix {
    inherit config lib;
    otherwise = "or leave `providers` out, and give instances their keys by `environmentFile`";
  };
in
{
  imports = [ ./assertions.nix ];

  config = lib.mkIf keyed.exists {
    # It is an instance, too.
    assertions = map (message: {
      assertion = false;
      inherit message;
    }) (changed "opencode-keys" services.opencode-keys);

    users.users.opencode-keys = {
      isSystemUser = true;
      group = "opencode-keys";
      description = "Keys of opencode servers' providers";
    };
    users.groups.opencode-keys = { };

    # A changed configuration is a reload: what streams goes on.
    environment.etc = {
      "opencode-keys/nginx.conf".source = configuration;
      "opencode-keys/gone.conf".source = gone;
      "opencode-keys/list".source = list;
      "opencode-keys/load".source = load;
      "systemd/journald@opencode-keys.conf".source = file "journald@opencode-keys.conf" ''
        [Journal]
        SystemMaxUse=256M
        RuntimeMaxUse=256M
      '';
    }
    // lib.optionalAttrs (textfile != null) { "opencode-keys/count".source = count; };

    systemd = { inherit services; };

    systemd.timers = {
      # A link on the way to a key that leads elsewhere is seen by this.
      opencode-keys-reload = {
        description = "Keys of opencode servers' providers, looked at";
        wantedBy = [ "timers.target" ];
        timerConfig = {
          OnActiveSec = 30;
          OnUnitInactiveSec = 30;
          AccuracySec = 5;
        };
      };
    }
    // lib.optionalAttrs (textfile != null) {
      opencode-keys-count = {
        description = "Requests of opencode servers to their providers, counted";
        wantedBy = [ "timers.target" ];
        timerConfig = {
          OnActiveSec = 15;
          OnUnitInactiveSec = 15;
          AccuracySec = 1;
        };
      };
    };

    # A key that changes in its place is read at once.
    systemd.paths.opencode-keys-reload = {
      description = "Keys of opencode servers' providers, watched";
      wantedBy = [ "multi-user.target" ];
      pathConfig.PathChanged = lib.unique (map (provider: provider.keyFile) keyed.providers);
    };
  };
}
