//! Explaining a verdict: by what is in the kernel, and beside it by what the policy file says now.

use super::{Daemon, DaemonError, error_chain, policies};
use crate::explain::{Destination, Explanation, Judgement, PolicyFile, explain};

impl Daemon {
    /// Judges a flow by what is in the kernel, and says where the policy file differs.
    ///
    /// # Errors
    ///
    /// When there is no such instance, or the kernel refuses.
    pub fn explain(&self, name: &str, destination: Destination) -> Result<Explanation, DaemonError> {
        let file = policies::read(&self.config);
        let known = self.known(name).map_err(|unknown| match &file {
            Ok((set, _)) if set.instances.keys().any(|known| known.as_str() == name) => {
                DaemonError::NotApplied { name: name.to_owned(), config: self.config.clone() }
            }
            _ => unknown,
        })?;
        let instance = self.instance(&known)?;
        let judgement = match self.loaded.maps.policy(instance.index)? {
            Some((head, rules)) => explain(destination, &head, &rules, &instance.policy),
            None => Judgement::without_policy(),
        };
        let file = match &file {
            Ok((set, compiled)) => {
                let file = set.instances.get(&known).zip(compiled.get(&known));
                PolicyFile::compare(file, &instance.policy, destination, &judgement)
            }
            Err(error) => PolicyFile::Unusable { error: error_chain(error) },
        };
        Ok(Explanation { destination, judgement, config: self.config.display().to_string(), file })
    }
}
