# How tests judge what the module says of a host.
{ lib, host }:
let
  inherit (lib) any filter hasInfix;
in
{
  isolated = settings: { networkIsolation = settings // { enable = true; }; };

  # A host that must fail with one message that has all these words, beside one that must not fail.
  fails = config: words: good: {
    got = {
      said = filter (message: lib.all (word: hasInfix word message) words) (host.failures config) != [ ];
      failures = builtins.length (host.failures config);
      good = host.failures good;
    };
    expected = {
      said = true;
      failures = 1;
      good = [ ];
    };
  };

  warns = config: words: good: {
    got = {
      said = any (message: lib.all (word: hasInfix word message) words) config.warnings;
      warnings = builtins.length config.warnings;
      good = good.warnings;
    };
    expected = {
      said = true;
      warnings = 1;
      good = [ ];
    };
  };
}
