# `services.opencode.defaults`, for every option.
{ lib, host }:
let
  inherit (lib)
    concatMapAttrs
    getAttrFromPath
    mkDefault
    mkForce
    mkIf
    setAttrByPath
    splitString
    ;
  table = import ./table.nix { inherit lib; };
  at = splitString ".";

  # Instance `a`, and what is set in `defaults` and in it.
  merge =
    defaults: instance:
    (host.config [
      {
        services.opencode = {
          inherit defaults;
          instances.a = instance;
        };
      }
    ]).services.opencode.instances.a;
  base = name: if name == "directory" then { } else { directory = "/srv/a"; };

  rows = concatMapAttrs (
    name: row:
    let
      shown = row.shown or lib.id;
      set = setAttrByPath (at name);
      of =
        defaults: instance: shown (getAttrFromPath (at name) (merge defaults (lib.mkMerge [ (base name) instance ])));
      second = row.merged or (shown row.second);
    in
    {
      "${name} reaches an instance that does not set it" = {
        got = of (set row.first) { };
        expected = shown row.first;
      };
      "${name} of the instance wins" = {
        got = of (set row.first) (set row.second);
        expected = second;
      };
      "${name} in defaults is no stronger with mkForce" = {
        got = of (set (mkForce row.first)) (set row.second);
        expected = second;
      };
    }
    // lib.optionalAttrs (!row ? merged) {
      "${name} of the instance wins with mkDefault too" = {
        got = of (set row.first) (set (mkDefault row.second));
        expected = second;
      };
    }
  ) table;
in
rows
// {
  "what is not defined is not set" = {
    got = (merge { logLevel = mkIf false "DEBUG"; } { directory = "/srv/a"; }).logLevel;
    expected = "INFO";
  };
  "a package" = {
    got =
      toString
        (merge {
          package = {
            type = "derivation";
            name = "x";
            outPath = "/nix/store/x";
            unevaluated = throw "a package was taken apart";
          };
        } { directory = "/srv/a"; }).package;
    expected = "/nix/store/x";
  };
  "definitions of the instance merge among themselves" = {
    got =
      (host.config [
        {
          services.opencode = {
            defaults.path = [ "/opt/default" ];
            instances.a.directory = "/srv/a";
          };
        }
        (host.called "a" { path = [ "/opt/one" ]; })
        (host.called "a" { path = lib.mkBefore [ "/opt/two" ]; })
      ]).services.opencode.instances.a.path;
    expected = [
      "/opt/two"
      "/opt/one"
    ];
  };
  "a value in a set of the instance wins with mkDefault too" = {
    got =
      (merge { environment.X = "default"; } {
        directory = "/srv/a";
        environment.X = mkDefault "own";
      }).environment;
    expected.X = "own";
  };
  "a list can be added to" = {
    got =
      (host.config [
        (
          { config, ... }:
          {
            services.opencode = {
              defaults.path = [ "/opt/default" ];
              instances.a = {
                directory = "/srv/a";
                path = config.services.opencode.defaults.path ++ [ "/opt/one" ];
              };
            };
          }
        )
      ]).services.opencode.instances.a.path;
    expected = [
      "/opt/default"
      "/opt/one"
    ];
  };
  "instances do not see each other" = {
    got =
      lib.mapAttrs (_: instance: instance.environment)
        (host.config [
          {
            services.opencode = {
              defaults.environment.X = "default";
              instances.a.directory = "/srv/a";
              instances.b = {
                directory = "/srv/b";
                environment.X = "own";
              };
            };
          }
        ]).services.opencode.instances;
    expected = {
      a.X = "default";
      b.X = "own";
    };
  };
  "an unknown option is refused" = {
    got = host.throws (merge { prot = 1; } { directory = "/srv/a"; }).logLevel;
    expected = true;
  };
}
