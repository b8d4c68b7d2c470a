//! The maps as the loaded object has them.

use aya::{
    Ebpf,
    maps::{Map, MapError},
};

use super::MapsError;

/// Takes a map out of the object as what it is.
pub(in crate::kernel) fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, MapsError> {
    let map = ebpf.take_map(name).ok_or(MapsError::Missing(name))?;
    T::try_from(map).map_err(|source| MapsError::Other { name, source: Box::new(source) })
}
