# What a server and its scripts find around them.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ../types.nix { inherit lib; }) hostPath;
in
{
  options = {
    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        OPENCODE_DISABLE_MODELS_FETCH = "1";
      };
      description = ''
        Environment variables. They take precedence over the module's own (`HOME`, `SHELL`, `PATH`, `OPENCODE_DISABLE_AUTOUPDATE`), and those of
        {option}`environmentFile` over them. A value is what it is, `%` and `$` too. Everybody on the host can read them: no secrets.

        Under {option}`networkIsolation` the units get no variables by which the dynamic linker or the C library load code or write files, such as
        `LD_PRELOAD` and `LD_LIBRARY_PATH`, whatever sets them: they would have the process that attaches the policy, which is root's, load
        what the agent has put there. Here they are refused.
      '';
    };

    environmentFile = mkOption {
      type = types.nullOr hostPath;
      default = null;
      example = "/run/secrets/opencode-my-project";
      description = ''
        File of `NAME=value` lines, for keys and passwords, such as `ANTHROPIC_API_KEY` and `OPENCODE_SERVER_PASSWORD`. systemd reads it as root when
        the server starts; the server itself need not be able to. A string, so that it is not copied to the world-readable store.
        The agent can read what it sets, and print it. **Not where an agent writes**: it could put a link in its place, and have any file read for it.
      '';
    };

    environmentFiles = mkOption {
      type = types.listOf hostPath;
      default = [ ];
      description = "More of them, read after {option}`environmentFile`; of two values for a variable the later counts.";
    };

    path = mkOption {
      type = types.listOf (types.either types.package types.str);
      default = [
        pkgs.bash
        pkgs.git
        pkgs.ripgrep
      ];
      defaultText = lib.literalExpression "[ pkgs.bash pkgs.git pkgs.ripgrep ]";
      example = lib.literalExpression "config.services.opencode.defaults.path ++ [ pkgs.nodejs ]";
      description = ''
        Packages, or directories with a `bin`, whose programs the agent and the scripts find in `PATH`, before NixOS' basic tools. What is set here replaces the
        default, so add to it as in the example: without Git opencode finds no project and cannot undo, and without `rg` it cannot search.
      '';
    };

    preInitScript = mkOption {
      type = types.nullOr types.lines;
      default = "";
      description = ''
        Shell script that runs before the state directory is set up, at each start of the server, as its user, in a sandbox and under
        a policy like the server's. When it fails the server does not start. It is in the store: no secrets.
      '';
    };

    postInitScript = mkOption {
      type = types.nullOr types.lines;
      default = "";
      description = "The same, after the state directory was set up and before the server starts.";
    };
  };
}
