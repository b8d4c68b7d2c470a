# What the options of opencode.json are made of.
{ lib }:
let
  inherit (lib) mkOption showOption types;
  version = "1.18";
in
rec {
  # Any value that JSON has.
  json =
    types.json or (throw "opencode.json's options take `lib.types.json`, which nixpkgs has since 26.05, and this is nixpkgs ${lib.trivial.release}. Use nixpkgs 26.05 or newer.");

  # A key that may be left out: null, which is not written.
  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  # A key without which opencode refuses its object.
  required = type: description: mkOption { inherit type description; };

  # An object that opencode takes with any other key as well.
  open =
    options:
    types.submodule {
      freeformType = types.attrsOf json;
      inherit options;
    };

  # An object of which opencode knows every key. It drops others without a word, so they are told of; they are written all
  # the same, for a newer opencode.
  closed =
    options:
    types.submodule {
      freeformType = types.attrsOf unknown;
      inherit options;
    };

  # The value of a key that opencode does not know.
  unknown = json // {
    merge =
      loc: defs:
      lib.warn "${showOption loc}: opencode ${version} knows no such key and ignores it; check the spelling" (
        json.merge loc defs
      );
  };

  # A key of older versions that a server has no use for. It is told of, and not written.
  gone =
    instead:
    mkOption {
      type = types.nullOr (
        json
        // {
          merge =
            loc: _: lib.warn "${showOption loc}: opencode ${version} has no such key in opencode.json; ${instead}" null;
        }
      );
      default = null;
      visible = false;
      description = instead;
    };

  # A type with a condition across its parts; `problem` gives null or a sentence that says what to write instead.
  checked =
    type: problem:
    lib.mkOptionType {
      inherit (type)
        name
        description
        check
        getSubOptions
        ;
      descriptionClass = type.descriptionClass or null;
      merge =
        loc: defs:
        let
          value = type.merge loc defs;
          found = problem value;
        in
        if found == null then value else throw "${showOption loc}: ${found}";
    };

  # A time in milliseconds, or false for no limit.
  timeout = types.either types.ints.positive (types.enum [ false ]);

  logLevel =
    let
      levels = [
        "DEBUG"
        "INFO"
        "WARN"
        "ERROR"
      ];
    in
    types.coercedTo (types.enum (map lib.toLower levels)) lib.toUpper (types.enum levels);

  strings = types.listOf types.str;
  stringMap = types.attrsOf types.str;
}
