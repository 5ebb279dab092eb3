//! The `detach` verb: removes attachments, and with the last one the whole instance.

use anyhow::bail;

use crate::{kernel::instance::Writer, plan, preflight};

/// Detaches every attachment that one of `names` means. Returns their names.
///
/// # Errors
/// When a name means nothing (nothing is detached then), or the kernel refuses.
pub fn by_name(names: &[String]) -> anyhow::Result<Vec<String>> {
    preflight::may_detach()?;
    let writer = Writer::begin_if_mounted()?;
    let mut instance = writer.as_ref().map_or(Ok(None), Writer::open_existing)?;
    let all = instance.as_ref().map_or_else(|| Ok(Vec::new()), |instance| instance.state.list())?;
    let mut chosen = std::collections::BTreeMap::new();
    for name in names {
        let matching = plan::select(name, &all);
        if matching.is_empty() {
            let known = plan::list(all.iter().map(|(_, state)| state.name()));
            let known = if known.is_empty() {
                "nothing is attached".to_owned()
            } else {
                format!("attached: {known}")
            };
            bail!("failed to detach {name}: no attachment or service has this name: {known}");
        }
        chosen.extend(matching.into_iter().map(|(id, state)| (*id, state.name())));
    }
    if let Some(writer) = writer.filter(|_| chosen.len() == all.len()) {
        writer.remove_all()?;
    } else if let Some(instance) = &mut instance {
        for id in chosen.keys() {
            instance.state.remove(*id)?;
        }
    }
    Ok(chosen.into_values().collect())
}

/// Detaches everything of this network namespace, whatever version pinned it. Returns the names that could be read.
///
/// # Errors
/// When a pin cannot be removed.
pub fn all() -> anyhow::Result<Vec<String>> {
    preflight::may_detach()?;
    let Some(writer) = Writer::begin_if_mounted()? else { return Ok(Vec::new()) };
    // Pins of another version cannot be listed, but still removed.
    let names = match writer.open_existing() {
        Ok(Some(instance)) => instance.state.list()?.into_iter().map(|(_, state)| state.name()).collect(),
        Ok(None) | Err(_) => Vec::new(),
    };
    writer.remove_all()?;
    Ok(names)
}
