//! Nodes of the device tree with what is above them: what an address or an interrupt in a node means depends on its
//! parents.

use aarch64::gic::IntId;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property, ToCellInt};
use types::{Pa, PaRange};

/// A node, and the way to it from the root.
#[derive(Clone, Copy)]
pub(super) struct Place<'p, 'a> {
    pub(super) node: FdtNode<'a>,
    parent: Option<&'p Place<'p, 'a>>,
}

/// Nodes deeper than this are not looked at: nothing that matters here is, and the stack is not without end.
const DEEPEST: u32 = 8;

/// Whether to go on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// With the next node.
    Continue,
    /// No further.
    Stop,
}

/// Visits the nodes that are not disabled, parents first.
pub(super) fn visit<'a>(fdt: Fdt<'a>, visitor: &mut dyn FnMut(&Place<'_, 'a>) -> Then) {
    below(&Place { node: fdt.root(), parent: None }, DEEPEST, visitor);
}

fn below<'a>(place: &Place<'_, 'a>, depth: u32, visitor: &mut dyn FnMut(&Place<'_, 'a>) -> Then) -> Then {
    if !place.is_enabled() {
        return Then::Continue;
    }
    if visitor(place) == Then::Stop {
        return Then::Stop;
    }
    if depth > 0 {
        for node in place.node.children() {
            if below(&Place { node, parent: Some(place) }, depth - 1, visitor) == Then::Stop {
                return Then::Stop;
            }
        }
    }
    Then::Continue
}

/// Visits the node that `path` names from the root: `/soc/serial@1000`. A component without unit address fits any.
pub(super) fn visit_path<'a>(fdt: Fdt<'a>, path: &str, visitor: &mut dyn FnMut(&Place<'_, 'a>)) {
    if let Some(path) = path.strip_prefix('/') {
        down(&Place { node: fdt.root(), parent: None }, path, visitor);
    }
}

fn down<'a>(place: &Place<'_, 'a>, path: &str, visitor: &mut dyn FnMut(&Place<'_, 'a>)) {
    if path.is_empty() {
        return visitor(place);
    }
    let (name, rest) = path.split_once('/').unwrap_or((path, ""));
    if let Some(node) = place.node.child(name) {
        down(&Place { node, parent: Some(place) }, rest, visitor);
    }
}

impl<'a> Place<'_, 'a> {
    /// Tells whether the node may be used. "ok" is not in the specification, but in trees.
    fn is_enabled(&self) -> bool {
        self.string("status").is_none_or(|status| matches!(status, "okay" | "ok"))
    }

    /// Tells whether `compatible` holds one of `names`.
    pub(super) fn is_compatible(&self, names: &[&str]) -> bool {
        self.node.compatible().is_some_and(|mut own| own.any(|own| names.contains(&own)))
    }

    /// Returns the string that property `name` is.
    pub(super) fn string(&self, name: &str) -> Option<&'a str> {
        self.node.property(name)?.value_as().ok()
    }

    /// Returns the number that property `name` is, of one or two cells.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        let property = self.node.property(name)?;
        property.value_as::<u32>().map(u64::from).or_else(|_| property.value_as::<u64>()).ok()
    }

    /// Returns the bytes of property `name`; none where it is not there.
    pub(super) fn bytes(&self, name: &str) -> &'a [u8] {
        self.node.property(name).and_then(|property| property.value_as().ok()).unwrap_or_default()
    }

    /// Tells whether there is a property `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.node.property(name).is_some()
    }

    /// Tells whether the node is `name`, directly below the root.
    pub(super) fn is_top(&self, name: &str) -> bool {
        self.parent.is_some_and(|parent| parent.parent.is_none()) && self.node.name() == name
    }

    /// Tells whether the node's parent is `name`, directly below the root.
    pub(super) fn is_child_of(&self, name: &str) -> bool {
        self.parent.is_some_and(|parent| parent.is_top(name))
    }

    /// Returns the first address in `reg`, untranslated: a CPU's affinity.
    pub(super) fn address(&self) -> Option<u64> {
        self.node.reg().ok()??.next()?.address.to_int::<u64>().ok()
    }

    /// Goes through the memory ranges of `reg`, as physical addresses; those that are not whole are `None`.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Option<PaRange>> + use<'_, 'a> {
        self.node.reg().ok().flatten().into_iter().flatten().map(|reg| {
            let start: u64 = reg.address.to_int().ok()?;
            let size: u64 = reg.size.to_int().ok()?;
            PaRange::with_len(Pa::new(self.translate(start, size)?), size)
        })
    }

    /// Goes through the interrupts that are written as the GIC's binding has them (three cells: type, number, flags):
    /// SPIs and PPIs, as interrupt ids.
    pub(super) fn interrupts(&self) -> impl Iterator<Item = IntId> + use<'a> {
        let property = self.node.property("interrupts");
        let triples = property.and_then(|p| p.as_prop_encoded_array([1, 1, 1]).ok()).into_iter().flatten();
        triples.filter_map(|[kind, number, _]| {
            let number: u32 = number.to_int().ok()?;
            match kind.to_int::<u32>().ok()? {
                0 => IntId::new(number.checked_add(32)?),
                1 if number < 16 => IntId::new(16 + number),
                _ => None,
            }
        })
    }

    /// Translates an address on the node's bus to the CPUs' view: through the `ranges` of each parent below the root.
    /// `None` where a bus has none, or none that holds all `size` bytes.
    fn translate(&self, mut address: u64, size: u64) -> Option<u64> {
        let mut at = self.parent;
        while let Some(bus) = at {
            let Some(above) = bus.parent else { break };
            if !bus.node.property("ranges")?.value().is_empty() {
                address = bus.node.ranges().ok()??.find_map(|window| {
                    let child: u64 = window.child_bus_address().ok()?;
                    let parent: u64 = window.parent_bus_address().ok()?;
                    let length: u64 = window.length().ok()?;
                    let offset = address.checked_sub(child)?;
                    (offset <= length && size <= length - offset).then(|| parent.checked_add(offset))?
                })?;
            }
            at = Some(above);
        }
        Some(address)
    }
}
