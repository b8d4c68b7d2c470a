# Every option of an instance: its default, two values that it takes, and what it does not take. `merged` is what becomes
# of the first value in `defaults` and the second in the instance, where that is not the second.
{ lib }:
let
  inherit (import ./kinds.nix)
    amount
    files
    flag
    gone
    path
    paths
    script
    strings
    text
    ;
in
{
  enable = flag // {
    default = true;
    first = false;
    second = true;
  };
  directory = {
    # There is none.
    default = "/srv/a";
    first = "/srv/x";
    second = "/srv/y";
    bad = path;
  };
  stateDir = {
    default = "/var/lib/opencode/instance-state/a";
    first = "/var/lib/x";
    second = "/var/lib/y";
    bad = path;
  };
  user = {
    default = "opencode-a";
    first = "x";
    second = "y";
    bad = text ++ [ "with:colon" ];
  };
  group = {
    default = "opencode-a";
    first = "x";
    second = "y";
    bad = text ++ [ "with:colon" ];
  };
  extraGroups = strings;
  "listen.address" = {
    default = "127.0.0.1";
    first = "::1";
    second = "0.0.0.0";
    bad = [
      "localhost"
      "127.0.0.1:80"
      "127.0.0.01"
      "10.0.0.0/8"
    ];
  };
  "listen.port" = {
    default = 4096;
    first = 8080;
    second = 8081;
    bad = [
      0
      65536
      "8080"
    ];
  };
  "listen.extraPorts" = {
    default = [ ];
    first = [ 5173 ];
    second = [
      3000
      3001
    ];
    bad = [
      5173
      [ 0 ]
      [ "5173" ]
    ];
  };
  openFirewall = flag;
  attended = flag;
  # For a message; see moved.nix.
  model = gone;
  provider = gone;
  logLevel = {
    default = "INFO";
    first = "DEBUG";
    second = "WARN";
    bad = [
      "Debug"
      "TRACE"
      1
    ];
  };
  cors = strings;
  mdns = flag;
  mdnsDomain = {
    default = null;
    first = "x.local";
    second = "y.local";
    bad = [ 1 ];
  };
  pure = flag;
  extraArgs = strings;
  environment = {
    default = { };
    first = {
      X = "one";
      Y = "kept";
    };
    second.X = "two";
    merged = {
      X = "two";
      Y = "kept";
    };
    bad = [
      [ "X=1" ]
      { X = 1; }
    ];
  };
  environmentFile = {
    default = null;
    first = "/run/one";
    second = "/run/two";
    bad = path;
  };
  environmentFiles = paths;
  path = strings // {
    # In this order they are found.
    default = [ "bash" "git" "ripgrep" ];
    first = [ "/opt/one" ];
    second = [ "/opt/two" "/opt/three" ];
    # nixpkgs calls its bash `bash-interactive`.
    shown = map (entry: if lib.isString entry then entry else lib.head (lib.splitString "-" entry.pname));
    bad = [
      "/opt/one"
      [ 1 ]
    ];
  };
  preInitScript = script;
  postInitScript = script;
  config = {
    first = {
      model = "x/one";
      small_model = "x/kept";
      provider.x.options.timeout = 1;
      provider.y.options.timeout = 2;
      permission.bash = "deny";
    };
    second = {
      model = "x/two";
      provider.x.options.timeout = 3;
      # A value that may be other than a set is one value.
      permission = "allow";
    };
    shown =
      config:
      {
        inherit (config) model small_model permission;
      }
      // lib.mapAttrs (_: provider: provider.options.timeout) (
        if config.provider == null then { } else config.provider
      );
    default = {
      model = null;
      small_model = null;
      permission = null;
    };
    merged = {
      model = "x/two";
      small_model = "x/kept";
      permission = "allow";
      x = 3;
      y = 2;
    };
    bad = [
      "text"
      { model = 1; }
    ];
  };
  configFile = {
    default = null;
    first = "/run/one";
    second = "/run/two";
    bad = [
      "relative"
      1
    ];
  };
  skills = files;
  agents = files;
  commands = files;
  "resources.memoryMax" = amount // { default = "75%"; };
  "resources.memoryHigh" = amount;
  "resources.cpuQuota" = {
    default = null;
    first = "50%";
    second = "200%";
    bad = [
      "2"
      2
    ];
  };
  "resources.cpuWeight" = {
    default = null;
    first = 50;
    second = 100;
    bad = [
      0
      10001
      "50"
    ];
  };
  "resources.openFilesMax" = {
    default = 65536;
    first = 1024;
    second = 4096;
    bad = [
      1023
      "infinity"
    ];
  };
  "resources.sockets" = {
    default = 4096;
    first = 1;
    second = 1000000;
    bad = [
      0
      1000001
      "many"
      null
    ];
  };
  "resources.sharedMemoryMax" = {
    default = "1G";
    first = "64M";
    second = "10%";
    bad = [
      "0"
      "64"
      "64M,exec"
    ];
  };
  "resources.terminalsMax" = {
    default = 256;
    first = 1;
    second = 3072;
    bad = [
      0
      3073
    ];
  };
  "resources.journalMax" = {
    default = "64M";
    first = "8M";
    second = "1G";
    bad = [
      "64"
      "10%"
      "64M\nStorage=none"
    ];
  };
  "resources.tasksMax" = {
    default = 4096;
    first = 512;
    second = "10%";
    bad = [
      0
      "many"
    ];
  };
  "sandbox.readWritePaths" = paths;
  "sandbox.readOnlyPaths" = paths;
  "sandbox.unixSockets.allow" = paths;
  "sandbox.extraConfig" = {
    default = { };
    first = {
      Nice = 5;
      IOWeight = 10;
    };
    second.Nice = 10;
    merged = {
      Nice = 10;
      IOWeight = 10;
    };
    bad = [
      "Nice=5"
      { Nice = { }; }
      { Nice = "5\nUser=root"; }
      { Nice = [ "5\nUser=root" ]; }
    ];
  };
  providers = {
    default = { };
    first.anthropic.keyFile = "/run/secrets/anthropic";
    second.own.keyFile = "/run/secrets/own";
    merged = {
      anthropic = "/run/secrets/anthropic";
      own = "/run/secrets/own";
    };
    bad = [
      "anthropic"
      { anthropic = { }; }
      { anthropic.keyFile = "key"; }
      { "a b".keyFile = "/run/secrets/x"; }
    ];
    shown = lib.mapAttrs (_: { keyFile, ... }: keyFile);
  };
}
// import ./table-network.nix
