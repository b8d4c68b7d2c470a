# `services.opencode`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.services.opencode;
  instance = [
    ./instance.nix
    ./listen.nix
    ./files.nix
    ./environment.nix
    ./sandbox.nix
    ./network-isolation.nix
    ./providers.nix
    ./moved.nix
  ];
  # Options take `pkgs` for their defaults; submodules have it only if it is given to them.
  withPkgs =
    modules:
    types.submoduleWith {
      # Or an instance's option `config` would be taken for a module's.
      shorthandOnlyDefinesConfig = true;
      modules = modules ++ [ { _module.args = { inherit pkgs; }; } ];
    };
  lower = import ./defaults.nix { inherit lib; };
  inherit (import ../types.nix { inherit lib; }) attrsNamed instanceNameProblem;
in
{
  imports = [
    ./egress.nix
    ./keys.nix
  ];

  options.services.opencode = {
    enable = mkEnableOption "opencode servers, each a systemd unit `opencode-<name>.service` of its own";

    defaults = mkOption {
      type = withPkgs (instance ++ [ lower.module ]);
      default = { };
      visible = "shallow";
      description = ''
        What every instance has that does not say otherwise; every option of {option}`services.opencode.instances.<name>` may be
        set here.

        These are definitions of a priority below those of an instance, `lib.mkDefault` included, whatever priority they have here. So
        what an instance sets wins, option by option:

        - A single value and a list of the instance replace those from here. To add to a list, say so:
          `path = config.services.opencode.defaults.path ++ [ pkgs.jq ];`
        - Attribute sets such as {option}`environment`, {option}`skills`, {option}`sandbox.extraConfig` and {option}`config` are merged name by name, at every
          depth. (A priority such as `lib.mkDefault` then belongs to the values in them.)
        - A value of {option}`config` that may be an attribute set or something else, such as `permission`, is one value: the instance's
          replaces it.
      '';
    };

    instances = mkOption {
      type = attrsNamed instanceNameProblem (
        withPkgs (instance ++ [ { config = lower.definitions cfg.defaults; } ])
      );
      default = { };
      description = ''
        opencode servers. The name is part of the units' names, `opencode-<name>.service` and `opencode-<name>-setup.service`, and of the
        policy: 1 to 64 letters, digits, `-` or `_`.
      '';
    };
  };
}
