# Where a server listens, and the other options of `opencode serve`.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ../types.nix { inherit lib; }) address port;
  inherit (import ../opencode-json/types.nix { inherit lib; }) logLevel;
in
{
  options = {
    listen = {
      address = mkOption {
        type = address;
        default = "127.0.0.1";
        example = "0.0.0.0";
        description = ''
          Address that the server listens on. Whoever reaches it can have the agent run commands, unless `OPENCODE_SERVER_PASSWORD` is set (in an
          {option}`environmentFile`). On a wildcard address an instance with {option}`networkIsolation` answers only loopback until
          {option}`openFirewall` is set.
        '';
      };
      port = mkOption {
        type = port;
        default = 4096;
        description = ''
          TCP port that the server listens on; two instances cannot have one in common on the same address. One below 32768, where the kernel
          does not take ports for outgoing connections.
        '';
      };
      extraPorts = mkOption {
        type = types.listOf port;
        default = [ ];
        example = [ 5173 ];
        description = ''
          Ports on 127.0.0.1 and ::1 on which others on this host may use what the agent starts, such as a development server in a browser. Under
          {option}`networkIsolation` what listens on other ports only the instance itself reaches
          ({option}`networkIsolation.ownLoopback`); without it this has no effect. **Everything on this host can connect to what
          listens there.** At most 7.
        '';
      };
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether {option}`listen.port` can be reached from other machines: it is opened in {option}`networking.firewall`, and under
        {option}`networkIsolation` in the instance's own policy. No other port is, and nothing is opened without this.
      '';
    };

    logLevel = mkOption {
      type = types.nullOr logLevel;
      default = "INFO";
      description = "What the server writes to the journal. `DEBUG` includes what is sent to models. Null leaves it to opencode, and to `OPENCODE_LOG_LEVEL`.";
    };

    cors = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "https://code.example.org" ];
      description = "Origins, besides opencode's own, whose web pages may use the server from a browser.";
    };

    mdns = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the server announces itself in the local network. It does so only on an address other than loopback, and cannot under
        {option}`networkIsolation`, which lets it send nothing there.
      '';
    };

    mdnsDomain = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "project.local";
      description = "Name to announce; opencode's default is `opencode.local`.";
    };

    pure = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to run without external plugins, whatever {option}`config` or the project says. Plugins run inside the server.";
    };

    extraArgs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Arguments of `opencode serve` after all others, so that they have the last word. Everybody on the host can read them: no secrets.";
    };
  };
}
