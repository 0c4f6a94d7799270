//! Changes to what runs, without the file or also in it.
//!
//! What runs is a text like that of the file. Edits change a copy of it, which then goes the way of a reload. To save means
//! to make the same edits in the file, as it is then; what was changed before without being saved is not written by that.

use std::path::Path;
use std::sync::Arc;

use super::Daemon;
use super::reload::{Cause, compile};
use super::save::Replacement;
use crate::control::api::{Difference, Edit, Fault, FaultCode};
use crate::control::config::edit::{EditError, apply};
use crate::control::config::{Config, ConfigErrors, read_file};

impl Daemon {
    /// All edits or none. With `save` a file that cannot be written refuses them as well.
    /// All edits or none. With `save` a file that cannot be written refuses them all as well.
    pub(super) async fn edit(&mut self, edits: &[Edit], save: bool) -> Result<Difference, Fault> {
        let file = self.options.config.clone();
        let text = apply(&self.text, edits).map_err(|error| self.fault(error))?;
        let config = Config::parse(&file, &text).map_err(|errors| failed(without_places(&errors)))?;
        let new = compile(config, Some(&self.compiled.gateway), &self.names).await;
        let new = new.map_err(|error| failed(format!("{error:#}")))?;
        let saving = if save { Some(Saving::prepare(&file, edits)?) } else { None };
        let (changes, generation) = self.adopt(new, Cause::Edit).await.map_err(|error| failed(format!("{error:#}")))?;
        let mut difference = Difference { changes, generation, ..Difference::default() };
        let saved = saving.map(|saving| self.finish(saving, edits, &mut difference));
        // Also where it was not saved: the change is done.
        self.tell_unsaved();
        saved.transpose()?;
        Ok(difference)
    }

    fn finish(&mut self, saving: Saving, edits: &[Edit], difference: &mut Difference) -> Result<(), Fault> {
        let file = self.options.config.clone();
        let not_saved =
            |error: Fault| failed(format!("the change is done, but {} was not saved: {error}", file.display()));
        let (before, after) = saving.commit(&file, edits).map_err(not_saved)?;
        if *before != *self.in_file {
            difference.notes.push(format!(
                "{} had been changed since it was loaded: the edit was made in it as it is, and what else it has \
                 differently waits for a reload",
                file.display()
            ));
        }
        self.saved(&file, known_after(&self.in_file, &before, &after, edits));
        difference.saved = Some(file.display().to_string());
        Ok(())
    }

    /// Writes what runs into the file. What somebody has changed there since it was loaded is lost, so it is refused
    /// then, unless `force` says that this is meant.
    pub(super) fn save(&mut self, force: bool) -> Result<Difference, Fault> {
        let file = self.options.config.clone();
        let before = read_file(&file).map_err(|errors| failed(errors.to_string()))?;
        if !force && *before.text != *self.in_file {
            return Err(failed(format!(
                "{} has been changed since it was loaded: `gatun diff` shows what a reload would change; --force \
                 overwrites it",
                file.display()
            )));
        }
        let replacement = Replacement::write(&file, &self.text).map_err(|error| failed(format!("{error:#}")))?;
        replacement.commit().map_err(|error| failed(format!("{} was not saved: {error}", file.display())))?;
        self.saved(&file, self.text.clone());
        self.tell_unsaved();
        Ok(Difference {
            generation: self.gateway.snapshot().generation,
            saved: Some(file.display().to_string()),
            ..Difference::default()
        })
    }

    /// A server that stands behind a name is no entry of the configuration.
    fn fault(&self, error: EditError) -> Fault {
        if let EditError::NoServer { service, server } = &error
            && let Ok(config) = Config::parse(&self.options.config, &self.text)
            && let (config, _) = config.expanded(&self.names.resolved())
            && let Some(origin) = config.origin_of(service, server)
        {
            let message = format!(
                "server {server:?} of service {service:?} comes from {origin}: it is to be changed there, or in the \
                 entry with that address"
            );
            return failed(message);
        }
        let code = match error {
            EditError::NoService(_) | EditError::NoServer { .. } => FaultCode::NotFound,
            EditError::OtherName { .. } | EditError::Number { .. } => FaultCode::BadRequest,
            _ => FaultCode::Failed,
        };
        Fault::new(code, error.to_string())
    }

    fn saved(&mut self, file: &Path, text: Arc<str>) {
        tracing::info!("saved to {}", file.display());
        self.in_file = text;
    }
}

/// The same edits in the file, ready to take its place.
struct Saving {
    before: Arc<str>,
    text: Arc<str>,
    replacement: Replacement,
}

impl Saving {
    fn prepare(file: &Path, edits: &[Edit]) -> Result<Saving, Fault> {
        let before = Config::load(file).map_err(|errors| failed(errors.to_string()))?.source.text;
        let text = apply(&before, edits).map_err(|error| {
            failed(format!(
                "{} cannot be changed like that: {error}. What was changed without --save is not in it; `gatun save` \
                 writes all that runs",
                file.display()
            ))
        })?;
        Config::parse(file, &text).map_err(|errors| failed(without_places(&errors)))?;
        let replacement = Replacement::write(file, &text).map_err(|error| failed(format!("{error:#}")))?;
        Ok(Saving { before, text: text.into(), replacement })
    }

    /// Puts it in the file's place; answers what was there before, and what is there now. Somebody may have written the file
    /// since it was prepared: then the edits are made in that.
    fn commit(mut self, file: &Path, edits: &[Edit]) -> Result<(Arc<str>, Arc<str>), Fault> {
        if read_file(file).is_ok_and(|now| *now.text != *self.before) {
            // Its temporary file has the same name.
            drop(self);
            self = Saving::prepare(file, edits)?;
        }
        self.replacement.commit().map_err(|error| failed(error.to_string()))?;
        Ok((self.before, self.text))
    }
}

/// What the file is known to have once `edits` were made in it, too. What others have written there was never loaded and
/// stays unknown, so that a save of all that runs does not overwrite it unasked.
fn known_after(in_file: &Arc<str>, before: &str, after: &Arc<str>, edits: &[Edit]) -> Arc<str> {
    if *before == **in_file {
        return after.clone();
    }
    apply(in_file, edits).map_or_else(|_| in_file.clone(), Arc::from)
}

fn failed(message: impl Into<String>) -> Fault {
    Fault::new(FaultCode::Failed, message)
}

/// The text is none that the operator has seen, so its lines mean nothing to them.
fn without_places(errors: &ConfigErrors) -> String {
    const SHOWN: usize = 20;
    let problems = errors.problems();
    let mut lines: Vec<&str> = problems.iter().take(SHOWN).map(|problem| problem.message.as_str()).collect();
    let more = format!("and {} more", problems.len().saturating_sub(SHOWN));
    if problems.len() > SHOWN {
        lines.push(&more);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    // Else `gatun save` would find the file as it is known, and write over what a colleague has in it.
    #[test]
    fn what_others_wrote_stays_unknown_when_an_edit_is_saved() {
        let loaded: Arc<str> = "[[service]]\nname = \"web\"\nweight = 1\n".into();
        let edits = |service: &str| {
            let keys = serde_json::json!({ "weight": 2 }).as_object().cloned().unwrap_or_default();
            vec![Edit::SetService { service: service.to_owned(), keys }]
        };
        let saved = |before: &str, edits: &[Edit]| -> (Arc<str>, Arc<str>) {
            let after: Arc<str> = apply(before, edits).unwrap().into();
            (known_after(&loaded, before, &after, edits), after)
        };
        let (known, after) = saved(&loaded, &edits("web"));
        assert_eq!(known, after, "nobody else wrote");
        let others = format!("{loaded}\n[[service]]\nname = \"other\"\nweight = 1\n");
        let (known, after) = saved(&others, &edits("web"));
        assert_ne!(known, after);
        assert_eq!(*known, loaded.replace('1', "2"));
        let (known, _) = saved(&others, &edits("other"));
        assert_eq!(known, loaded, "what was edited is another's");
    }

    #[test]
    fn a_file_that_is_written_while_an_edit_is_done_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.toml");
        let text = "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nserver = []\n";
        let keys = serde_json::json!({ "scheduler": "rr" }).as_object().cloned().unwrap_or_default();
        let edits = [Edit::SetService { service: "web".to_owned(), keys }];
        for meanwhile in [text.to_owned(), format!("{text}# A note.\n")] {
            std::fs::write(&file, text).unwrap();
            let saving = Saving::prepare(&file, &edits).unwrap();
            std::fs::write(&file, &meanwhile).unwrap();
            let (before, after) = saving.commit(&file, &edits).unwrap();
            let now = std::fs::read_to_string(&file).unwrap();
            assert_eq!((&*before, &*after), (&*meanwhile, &*now));
            assert!(now.contains("\"rr\"") && now.contains("# A note.") == meanwhile.contains("# A note."), "{now}");
        }
        std::fs::write(&file, text).unwrap();
        let saving = Saving::prepare(&file, &edits).unwrap();
        std::fs::write(&file, "[[service]]\nname = \"other\"\nlisten = \"203.0.113.10:80\"\nserver = []\n").unwrap();
        assert!(saving.commit(&file, &edits).is_err());
        let left = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 1, "a temporary file is left");
    }
}
